"""Locks that a killed process left where torch compiles DeepSpeed's operators: who waits for one waits for ever."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 1800  # compiling takes a minute or two


def remove_stale() -> None:
    """Remove what is too old to be of a process that compiles; say so. Once for each machine is enough."""
    for lock in find_stale():
        lock.unlink(missing_ok=True)
        message = f"removed {lock}: a process that was killed while it compiled had left it, and this one would wait"
        print(f"sft: WARNING: {message}", file=sys.stderr, flush=True)


def find_stale() -> Iterator[Path]:
    """The locks of torch.utils.cpp_extension in whose folder nothing has changed for so long."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(given) if given else Path.home() / ".cache" / "torch_extensions"
    for lock in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        ages = [time.time() - file.stat().st_mtime for file in lock.parent.iterdir() if file.exists()]
        if ages and min(ages) > STALE_SECONDS:
            yield lock
