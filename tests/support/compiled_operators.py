"""How DeepSpeed's operators are compiled in tests and in the quickstart: once, in this environment's own folder."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def compile_once() -> None:
    """Set the environment for it. What is compiled depends on the Python environment and on the compiler; in the
    default folder, which is shared, others would compile it again and again."""
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if shutil.which("g++"):
        os.environ.setdefault("CXX", str(Path(__file__).with_name("lean-g++.sh")))
