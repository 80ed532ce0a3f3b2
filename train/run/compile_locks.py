"""Removes stale build locks of torch extensions, left by killed processes; waiting for one never ends."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from train.run.log import ANY_RANK

log = logging.getLogger(__name__)

STALE_SECONDS = 600  # compiling takes a minute or two, on a busy machine some more


def remove_stale() -> None:
    """Remove locks too old to belong to a process that compiles, and report them. Once a machine is enough."""
    for lock in find_stale():
        lock.unlink(missing_ok=True)
        message = f"removed {lock}: a process that was killed while it compiled had left it, and this one would wait"
        log.warning(message, extra=ANY_RANK)


def find_stale() -> Iterator[Path]:
    """The locks of torch.utils.cpp_extension in whose folder nothing has changed for STALE_SECONDS."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(given) if given else Path.home() / ".cache" / "torch_extensions"
    for lock in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        ages = [time.time() - file.stat().st_mtime for file in lock.parent.iterdir() if file.exists()]
        if ages and min(ages) > STALE_SECONDS:
            yield lock
