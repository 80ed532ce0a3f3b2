"""The checkpoint to resume from, the same on all ranks: the newest that is complete, unchanged, and of this run."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint import folders
from train.checkpoint.folders import Checkpoint
from train.checkpoint.lost_steps import check_nothing_is_lost, warn_of_steps_trained_again
from train.config.expert_parallel import section_of
from train.run import starts
from train.run.atomic_files import write_json_atomically
from train.run.distributed import gather, gather_problems, is_first
from train.run.model_identity import QUANTISATION, difference
from train.run.run_record import FILE, read_record

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from train.config.run_config import RunConfig

log = logging.getLogger(__name__)


def find_resume(config: RunConfig, run_dir: Path, args: TrainingArguments) -> Checkpoint | None:
    """The checkpoint to go on from, or None to begin. Every process must call it.

    A checkpoint whose content is not what was written is quarantined, so that no later deletion takes it for a good
    one, and the next older one is taken. Newer ones than a checkpoint that `resume` names are archived: they belong to
    another course of the run.

    Raises:
        ValueError: `resume` names a checkpoint that is damaged, or is "never" and there are checkpoints; the run has
            done steps, and no checkpoint is usable.
    """
    if config.own.resume == "never":
        _check_nothing_is_there(run_dir)
        return None
    named = gather(named_checkpoint(config, run_dir))[0]
    if named is None:
        return _newest_good(config, run_dir, args)
    found = folders.read(named)
    if problems := _damage(found, config, args):
        raise ValueError(f"{'; '.join(problems)}: give another checkpoint, or resume: auto for the newest good one")
    if args.process_index == 0:
        _begin_branch(found, run_dir)
    args.distributed_state.wait_for_everyone()
    return found


def note_start(found: Checkpoint | None) -> None:
    """Record where this start goes on from, and since when that state has been complete."""
    saved = None
    with suppress(OSError):
        saved = (found.path / folders.MARKER).stat().st_mtime if found else None
    starts.resumed(found.step if found else 0, saved)


def _check_nothing_is_there(run_dir: Path) -> None:
    if final_model(run_dir) or folders.newest_complete(run_dir, _silent):
        raise ValueError(f"resume is 'never', but {run_dir} holds checkpoints: choose another output_dir")
    check_nothing_is_lost(run_dir)


def final_model(run_dir: Path) -> Checkpoint | None:
    """The final model of a run that has ended, or None."""
    try:
        return folders.read(run_dir)
    except ValueError:
        return None


def check_start(config: RunConfig, run_dir: Path, here: dict[str, Any]) -> bool:
    """Compare this start with what it would go on from, before anything is written; whether there is anything.

    Args:
        here: as `check_identity` takes it.

    Raises:
        ValueError: see `check_identity`; the run has done steps, and there is nothing to go on from, or `resume` is
            "never".
    """
    if config.own.resume == "never":
        _check_nothing_is_there(run_dir)
        return False
    named = named_checkpoint(config, run_dir)
    found = folders.read(named) if named else folders.newest_complete(run_dir, _silent) or final_model(run_dir)
    if found:
        check_identity(found, here)
    else:
        check_nothing_is_lost(run_dir)
    return found is not None


def named_checkpoint(config: RunConfig, run_dir: Path) -> Path | None:
    """The checkpoint that `resume` names, or None where the newest one is to be taken.

    The newest is also taken when an earlier start has resumed from the named one, and has saved since.
    """
    if config.own.resume in ("auto", "never"):
        return None
    branch = (read_record(run_dir) or {}).get("branch")
    goes_on = branch == str(Path(config.own.resume).resolve()) and folders.newest_complete(run_dir, _silent)
    return None if goes_on else Path(config.own.resume)


def _begin_branch(found: Checkpoint, run_dir: Path) -> None:
    """Archive what is newer than the checkpoint, and note that the run goes on from it."""
    record, branch = read_record(run_dir) or {}, str(found.path.resolve())
    if record.get("branch") == branch:  # begun before, and nothing that it has saved since is usable
        warn_of_steps_trained_again(run_dir, found)
    for folder in folders.named_folders(run_dir):
        if folders.step_of(folder) > found.step:
            log.info(f"{folder.name} is newer than {found.path}: archived as {folders.archive(folder).name}")
    write_json_atomically(run_dir / FILE, {**record, "branch": branch, "saved_step": None})


def _newest_good(config: RunConfig, run_dir: Path, args: TrainingArguments) -> Checkpoint | None:
    while True:
        first = args.process_index == 0
        newest = folders.newest_complete(run_dir, _silent) if first else None
        path = gather(newest.path if newest else None)[0]  # others may see an older state of a network file system
        if path is None:
            _check_begins(run_dir)
            return None
        found = _read_everywhere(path)
        problems = _damage(found, config, args)
        if not problems:
            if first:
                warn_of_steps_trained_again(run_dir, found)
            return found
        quarantined = folders.quarantine(found) if first else None
        log.warning(f"{path.name} IS DAMAGED: {'; '.join(problems)}. Quarantined: {quarantined}; trying an older one")
        args.distributed_state.wait_for_everyone()  # nobody looks before it is renamed


def _check_begins(run_dir: Path) -> None:
    """Let all ranks begin, or none: the first one's look at the run directory counts."""
    problem = None
    if is_first():
        try:
            check_nothing_is_lost(run_dir)
        except ValueError as error:
            problem = str(error)
    if problem := gather(problem)[0]:
        raise ValueError(problem)


def _read_everywhere(path: Path) -> Checkpoint:
    """The checkpoint, as each rank sees it; if one cannot read it, all raise, so that none waits for another."""
    found, error = None, None
    try:
        found = folders.read(path)
    except ValueError as reason:
        error = str(reason)
    if errors := gather_problems([error] if error else []):
        raise ValueError(
            f"{path} is complete for the first process, not for another: {errors[0]}: is it shared by all?"
        )
    assert found is not None
    return found


def _damage(found: Checkpoint, config: RunConfig, args: TrainingArguments) -> list[str]:
    """What has changed since the checkpoint was written; each rank reads its share."""
    if not config.own.verify_checkpoint:
        return []
    mine = list(folders.verify(found, share=args.process_index, shares=args.world_size))
    return gather_problems(mine)


def identity(config: RunConfig, args: TrainingArguments) -> dict[str, Any]:
    """What must stay the same all through a run, besides its data and base model; goes into each checkpoint's marker.

    Args:
        args: whose train_sampling_strategy is that of the shards' recipe.
    """
    given = config.model
    return {
        "data_seed": args.seed if args.data_seed is None else args.data_seed,
        "row_order": str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy)),
        "adapters": {name: value for name, value in given.items() if name in _ADAPTERS or name.startswith("lora_")},
        "quantisation": {name: config.value(name) for name in QUANTISATION} if config.value("load_in_4bit") else {},
        "model": str(given["model_name_or_path"]),
        "expert_parallel": section_of(args) is not None,
    }


_DEFAULTS = {"expert_parallel": False}  # of checkpoints from before there was such a thing
_ADAPTERS = ("use_peft", "use_dora", "use_rslora", "load_in_4bit", "load_in_8bit")


def check_identity(found: Checkpoint, here: dict[str, Any]) -> None:
    """Compare a checkpoint's marker with this start.

    Args:
        here: what `identity` gives, `manifest_sha256` and `base_model` (of train.run.model_identity).

    Raises:
        ValueError: it was written with other data, in another order, with other adapters, or it holds adapters of
            another base model.
    """
    why = {
        "manifest_sha256": "these are other shards",
        "data_seed": "the rows would come in another order",
        "row_order": "the rows would come in another order",
        "adapters": "its states do not fit",
        "quantisation": "its adapters belong to other weights",
        "expert_parallel": "DeepSpeed loads its experts only in the form that they were saved in",
    }
    for name, reason in why.items():
        before, now = (values.get(name, _DEFAULTS.get(name)) for values in (found.extra, here))
        if before not in (None, now):
            raise ValueError(
                f"{found.path} was written with {name} {before}, here it is {now}: {reason}. Write what it was, or "
                "choose another output_dir"
            )
    _check_base(found, here)


def _check_base(found: Checkpoint, here: dict[str, Any]) -> None:
    """Adapters fit one base model; a full model has left its own behind, which is worth a line."""
    before, now = found.extra.get("base_model"), here.get("base_model")
    then, name = found.extra.get("model"), found.path.name
    if not (before and now):
        if then not in (None, here["model"]):
            log.warning(f"{name} was written by a run on the model {then}, here it is {here['model']}")
        return
    other = difference(before, now)
    if other and here["adapters"].get("use_peft"):
        raise ValueError(
            f"{found.path} holds adapters of the model that was at {then}; {here['model']} has {other}: adapters fit "
            "only the model they were trained on. Give that one, or choose another output_dir"
        )
    if other:
        log.warning(
            f"{name} was written by a run that began from {then}; {here['model']} has {other}. The run goes "
            "on from the checkpoint's weights"
        )


def _silent(message: str) -> None:
    pass
