"""`python -m packhaul`: the same as the installed command `packhaul`."""

from __future__ import annotations

import sys

from packhaul.command import main

if __name__ == "__main__":
    sys.exit(main())
