"""Compilation of DeepSpeed's operators: it is reported, and the stale locks of killed processes are removed.

It takes minutes without another line; waiting for a stale lock never ends.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.run.log import ANY_RANK

log = logging.getLogger(__name__)

STALE_SECONDS = 600  # compiling takes a minute or two, on a busy machine some more
_ASK_AGAIN = 1.0  # seconds


def remove_stale() -> None:
    """Remove locks too old to belong to a process that compiles, and report them. Once a machine is enough."""
    for lock in find_stale():
        lock.unlink(missing_ok=True)
        message = f"removed {lock}: a process that was killed while it compiled had left it, and this one would wait"
        log.warning(message, extra=ANY_RANK)


def announce_builds() -> None:
    """Let DeepSpeed say what it compiles before it does: nothing else is said meanwhile. Call it once it is wanted."""
    builder: Any = importlib.import_module("deepspeed.ops.op_builder.builder").OpBuilder
    compile_or_load = builder.jit_load

    @functools.wraps(compile_or_load)
    def loud(self: Any, *arguments: Any, **options: Any) -> Any:
        _wait_for_others(self.name)
        if not _is_built(self.name):
            once = "once for this environment; it takes minutes on a busy machine"
            log.info(f"compiling DeepSpeed's operator {self.name} into {_root()}: {once}")
        return compile_or_load(self, *arguments, **options)

    if not hasattr(compile_or_load, "__wrapped__"):
        builder.jit_load = loud


def _wait_for_others(name: str) -> None:
    """Wait while another process compiles an operator, or until its lock is stale: torch would wait for ever for one
    that was killed shortly before this start."""
    is_said = False
    while any(lock.parent.name == name for lock in _locks()):
        if not is_said:
            is_said = True
            minutes = STALE_SECONDS // 60
            log.info(f"another process compiles {name}: waiting, at most {minutes} minutes if it has been killed")
        remove_stale()
        time.sleep(_ASK_AGAIN)


def _locks() -> list[Path]:
    return sorted([*_root().glob("*/lock"), *_root().glob("*/*/lock")])


def find_stale() -> Iterator[Path]:
    """The locks of torch.utils.cpp_extension in whose folder nothing has changed for STALE_SECONDS."""
    for lock in _locks():
        ages = _ages(lock.parent)
        if ages and min(ages) > STALE_SECONDS:
            yield lock


def _ages(folder: Path) -> list[float]:
    """Seconds since each file has changed; those that are gone meanwhile are left out."""
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(time.time() - file.stat().st_mtime)
    return found


def _is_built(name: str) -> bool:
    return any([*_root().glob(f"{name}/{name}.so"), *_root().glob(f"*/{name}/{name}.so")])


def _root() -> Path:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "torch_extensions"
