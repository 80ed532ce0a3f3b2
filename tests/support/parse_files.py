"""Parse every shipped YAML and JSON file; exit code 1 and the file's name if one does not parse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PARSERS = {".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".json": json.loads}


def main() -> int:
    """Parse what git tracks or would add."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [ROOT / name for name in names if Path(name).suffix in PARSERS and (ROOT / name).exists()]
    failed = 0
    for file in files:
        try:
            PARSERS[file.suffix](file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            failed += 1
            print(f"{file.relative_to(ROOT)}: {error}", file=sys.stderr)
    print(f"{len(files)} files parsed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
