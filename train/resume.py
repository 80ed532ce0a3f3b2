"""Which checkpoint a run goes on from: the newest that is complete and unchanged, agreed on by all processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import checkpoint
from train.checkpoint import Checkpoint
from train.save_parts import gather


def find_resume(config: Any, run_dir: Path, args: Any, log: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin. Every process must call it.

    A checkpoint whose content is not what was written is renamed, so that no later deletion takes it for a good one,
    and the next older one is taken.

    Raises:
        ValueError: `resume` names a checkpoint that is damaged, or is "never" and there are checkpoints.
    """
    if config.own.resume == "never":
        if checkpoint.newest_complete(run_dir, _silent):
            raise ValueError(f"resume is 'never', but {run_dir} holds checkpoints: choose another output_dir")
        return None
    if config.own.resume == "auto":
        found = _newest_good(config, run_dir, args, log)
    else:
        found = checkpoint.read(Path(config.own.resume))
        if problems := _damage(found, config, args):
            raise ValueError(f"{'; '.join(problems)}: give another checkpoint, or resume: auto for the newest good one")
    return found


def _newest_good(config: Any, run_dir: Path, args: Any, log: Callable[[str], None]) -> Checkpoint | None:
    while True:
        first = args.process_index == 0
        newest = checkpoint.newest_complete(run_dir, log) if first else None
        path = gather(newest.path if newest else None)[0]  # others may see an older state of a network file system
        if path is None:
            return None
        found = _read_everywhere(path)
        problems = _damage(found, config, args)
        if not problems:
            return found
        aside = checkpoint.set_aside(found) if first else None
        log(f"WARNING: {path.name} IS DAMAGED: {'; '.join(problems)}. Renamed to {aside}; trying an older one")
        args.distributed_state.wait_for_everyone()  # nobody looks before it is renamed


def _read_everywhere(path: Path) -> Checkpoint:
    """The checkpoint, as each process sees it; if one cannot, all raise, so that nobody waits for it."""
    found, error = None, None
    try:
        found = checkpoint.read(path)
    except ValueError as reason:
        error = str(reason)
    if errors := [e for e in gather(error) if e]:
        raise ValueError(
            f"{path} is complete for the first process, not for another: {errors[0]}: is it shared by all?"
        )
    assert found is not None
    return found


def _damage(found: Checkpoint, config: Any, args: Any) -> list[str]:
    """What has changed since the checkpoint was written; each process reads its share."""
    if not config.own.verify_checkpoint:
        return []
    mine = list(checkpoint.verify(found, share=args.process_index, shares=args.world_size))
    return [problem for problems in gather(mine) for problem in problems]


def _silent(message: str) -> None:
    pass
