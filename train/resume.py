"""Which checkpoint a run goes on from: the newest that is complete and unchanged, agreed on by all processes; and that
it is one of this run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import checkpoint
from train.checkpoint import Checkpoint
from train.durable import write_json_atomically
from train.run_record import FILE, read_record
from train.save_parts import gather


def find_resume(config: Any, run_dir: Path, args: Any, log: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin. Every process must call it.

    A checkpoint whose content is not what was written is renamed, so that no later deletion takes it for a good one,
    and the next older one is taken. Newer ones than a checkpoint that `resume` names are renamed as well: they belong
    to another course of the run.

    Raises:
        ValueError: `resume` names a checkpoint that is damaged, or is "never" and there are checkpoints; all
            checkpoints are damaged.
    """
    if config.own.resume == "never":
        if checkpoint.newest_complete(run_dir, _silent):
            raise ValueError(f"resume is 'never', but {run_dir} holds checkpoints: choose another output_dir")
        return None
    named = gather(named_checkpoint(config, run_dir))[0]
    if named is None:
        return _newest_good(config, run_dir, args, log)
    found = checkpoint.read(named)
    if problems := _damage(found, config, args):
        raise ValueError(f"{'; '.join(problems)}: give another checkpoint, or resume: auto for the newest good one")
    if args.process_index == 0:
        _begin_branch(found, run_dir, log)
    args.distributed_state.wait_for_everyone()
    return found


def named_checkpoint(config: Any, run_dir: Path) -> Path | None:
    """The checkpoint that `resume` names, or None where the newest one is to be taken: also when the run has gone on
    from the named one before, has saved since, and is started again."""
    if config.own.resume in ("auto", "never"):
        return None
    branch = (read_record(run_dir) or {}).get("branch")
    goes_on = branch == str(Path(config.own.resume).resolve()) and checkpoint.newest_complete(run_dir, _silent)
    return None if goes_on else Path(config.own.resume)


def _begin_branch(found: Checkpoint, run_dir: Path, log: Callable[[str], None]) -> None:
    """Rename what is newer than the checkpoint, and note that the run goes on from it."""
    for folder in checkpoint.named_folders(run_dir):
        if checkpoint.step_of(folder) > found.step:
            log(f"{folder.name} is newer than {found.path}: renamed to {checkpoint.put_aside(folder).name}")
    record = read_record(run_dir) or {}
    write_json_atomically(run_dir / FILE, {**record, "branch": str(found.path.resolve())})


def finished_step(config: Any, run_dir: Path, args: Any, total_steps: int, manifest_sha256: str) -> int | None:
    """The last step of a run that has its final model and is asked for nothing more, else None. Every process must call
    it: the first one decides."""
    done = None
    if args.process_index == 0 and config.own.resume == "auto":
        try:
            final = checkpoint.read(run_dir)
        except ValueError:
            final = None
        newest = checkpoint.newest_complete(run_dir, _silent)
        if final and final.extra.get("max_steps") == total_steps and not (newest and newest.step > final.step):
            done = final.step if final.extra.get("manifest_sha256") == manifest_sha256 else None
    return gather(done)[0]


def _newest_good(config: Any, run_dir: Path, args: Any, log: Callable[[str], None]) -> Checkpoint | None:
    while True:
        first = args.process_index == 0
        newest = checkpoint.newest_complete(run_dir, log) if first else None
        path = gather(newest.path if newest else None)[0]  # others may see an older state of a network file system
        if path is None:
            if damaged := sorted(p.name for p in run_dir.glob("damaged-*")):
                raise ValueError(
                    f"{run_dir}: every checkpoint is damaged ({', '.join(damaged)}): look at these; to begin anew, "
                    "choose another output_dir, or move them away"
                )
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


def identity(config: Any, args: Any) -> dict[str, Any]:
    """What must be the same all through a run beside its data; goes into each checkpoint's marker."""
    adapters = {name: value for name, value in config.model.items() if name in _ADAPTERS or name.startswith("lora_")}
    return {
        "data_seed": args.seed if args.data_seed is None else args.data_seed,
        "row_order": str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy)),
        "adapters": adapters,
        "model": str(config.model["model_name_or_path"]),
    }


_ADAPTERS = ("use_peft", "use_dora", "use_rslora", "load_in_4bit", "load_in_8bit")


def check_identity(found: Checkpoint, here: dict[str, Any], log: Callable[[str], None]) -> None:
    """Compare a checkpoint's marker with this start.

    Args:
        here: what `identity` gives, and `manifest_sha256`.

    Raises:
        ValueError: it was written with other data, in another order, or with other adapters.
    """
    why = {
        "manifest_sha256": "these are other shards",
        "data_seed": "the rows would come in another order",
        "row_order": "the rows would come in another order",
        "adapters": "its states do not fit",
    }
    for name, reason in why.items():
        before, now = found.extra.get(name), here[name]
        if before not in (None, now):
            raise ValueError(
                f"{found.path} was written with {name} {before}, here it is {now}: {reason}. Write what it was, or "
                "choose another output_dir"
            )
    if (before := found.extra.get("model")) not in (None, here["model"]):
        log(f"WARNING: {found.path.name} was written by a run on the model {before}, here it is {here['model']}")


def _silent(message: str) -> None:
    pass
