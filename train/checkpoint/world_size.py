"""Resume in another world size, or under another ZeRO stage: the same global batch, the states rearranged.

The data position needs no conversion as long as a step takes as many rows as before: whatever the world size, step N
takes rows N x batch to (N + 1) x batch of the epoch's order. Sharded optimizer states are brought into
DeepSpeed's universal checkpoint, in a folder of its own next to the checkpoint, which is removed once it is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint import folders
from train.checkpoint.folders import Checkpoint
from train.checkpoint.fsdp_states import state_dict_type
from train.checkpoint.prepared_folder import copy_random_states, link, prepare
from train.checkpoint.resume import named_checkpoint
from train.config.expert_parallel import autoep_size
from train.config.run_config import RunConfig
from train.config.steps import rows_per_step

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

log = logging.getLogger(__name__)

_CONVERTIBLE = ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused")  # those with exp_avg and exp_avg_sq
_WHY = "a resume would train some documents twice and others never"


def keep_global_batch(config: RunConfig, run_dir: Path, world_size: int) -> tuple[RunConfig, str | None]:
    """The run config whose steps take as many rows as in the checkpoint to resume from, and what was changed.

    Only gradient_accumulation_steps is changed. Reads only the checkpoint's marker: batch sizes are fixed before the
    ranks join.

    Raises:
        ValueError: no accumulation makes it so; or the batch was changed in the run config.
    """
    found = candidate(config, run_dir)
    before = found.extra.get("rows_per_step") if found else None
    batch, accumulation = config.value("per_device_train_batch_size"), config.value("gradient_accumulation_steps")
    ranks = config.own.sequence_parallel
    rows = rows_per_step(world_size, batch, accumulation, ranks)
    if found is None or before is None or before == rows:
        return config, None
    who = f"{world_size // ranks} group(s) of {ranks} processes" if ranks > 1 else f"{world_size} process(es)"
    now = f"{who} x {batch} row(s) x {accumulation} accumulated = {rows}"
    problem = f"{found.path.name}: a step took {before} rows, here it would take {now}"
    fits = _fitting_accumulation(problem, before, world_size, batch, ranks)
    if found.world_size == world_size and found.extra.get("sequence_parallel", 1) == ranks:
        raise ValueError(f"{problem}: {_WHY}. Write gradient_accumulation_steps: {fits}")
    changed = dataclasses.replace(config, sft={**config.sft, "gradient_accumulation_steps": fits})
    return changed, (
        f"{found.path.name} was written by {found.world_size} process(es), here are {who}: "
        f"gradient_accumulation_steps is {fits} instead of {accumulation}, so that a step takes {before} rows as before"
    )


def _fitting_accumulation(problem: str, before: int, world_size: int, batch: int, ranks: int) -> int:
    """The accumulation with which a step takes as many rows as before.

    Args:
        ranks: number of ranks that hold parts of the same rows.

    Raises:
        ValueError: there is none; it begins with `problem`.
    """
    groups = world_size // ranks
    fits, rest = divmod(before, groups * batch)
    if not rest:
        return fits
    possible = [n * ranks for n in range(1, before // batch + 1) if before % (n * batch) == 0]
    raise ValueError(
        f"{problem}, and no accumulation makes {before} of {groups} x {batch}: {_WHY}. With {batch} row(s) at "
        f"a time {before} rows need one of {possible} processes; or choose another per_device_train_batch_size"
    )


def candidate(config: RunConfig, run_dir: Path) -> Checkpoint | None:
    """The checkpoint that a start would go on from, by its marker alone."""
    if config.own.resume == "never":
        return None
    if named := named_checkpoint(config, run_dir):
        return folders.read(named)
    return folders.newest_complete(run_dir, lambda message: None)


def kind_of_states(trainer: CheckpointedTrainer) -> dict[str, Any]:
    """What a checkpoint's marker says about how its states are sharded."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    stage = plugin.deepspeed_config["zero_optimization"]["stage"] if plugin else None
    engine = trainer.accelerator.distributed_type.value
    engine = engine if engine in ("DEEPSPEED", "FSDP") else "plain"
    return {
        "engine": engine,
        "zero_stage": stage,
        "autoep_size": autoep_size(trainer.args),
        "state_dict_type": state_dict_type(trainer),
        "optim": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
    }


@contextlib.contextmanager
def resumable(found: Checkpoint, trainer: CheckpointedTrainer, config: RunConfig) -> Iterator[Path]:
    """The folder that the trainer can go on from, while this is open: the checkpoint itself, or what was made of it.

    Every process must call it.

    Raises:
        ValueError: the states cannot be rearranged for this launch.
    """
    here = kind_of_states(trainer)
    before = {
        "engine": found.extra.get("engine", here["engine"]),
        "zero_stage": _stage_of(found, here["zero_stage"]),
        "state_dict_type": found.extra.get("state_dict_type", here["state_dict_type"]),
        "optim": found.extra.get("optim", here["optim"]),
    }
    _check_possible(found, before, here)
    if _lies_as_here(found, here, trainer):
        yield found.path
        return
    if not here["zero_stage"]:  # the libraries read the states in any world, but random states only of their own rank
        yield prepare(found, trainer, lambda folder: link(found, folder, trainer.args.world_size))
        return
    _check_experts(found, before, here, config)
    if config.own.reinitialize_optimizer:
        from train.checkpoint.deepspeed_universal import weights_only

        log.warning(f"{found.path.name}: reinitialize_optimizer: only weights are taken, optimizer states start fresh")
        with weights_only():
            yield _rearranged(found, trainer, here["zero_stage"], convert=False)
        return
    _check_convertible(found, before["optim"], trainer.args.world_size)
    log.info(
        f"{found.path.name}: ZeRO-{before['zero_stage']} states of {found.world_size} process(es) are rearranged for "
        f"ZeRO-{here['zero_stage']} and {trainer.args.world_size} process(es)"
    )
    from train.checkpoint.deepspeed_universal import loading_universal

    folder = _rearranged(found, trainer, here["zero_stage"], convert=True)
    with loading_universal(trainer):
        yield folder


@contextlib.contextmanager
def best_loadable(trainer: CheckpointedTrainer) -> Iterator[bool]:
    """Whether the best checkpoint can be loaded while this is open. Every rank must call it.

    Only weights are loaded from one that another world size has written; none from one of another ZeRO stage.
    """
    path = trainer.state.best_model_checkpoint
    here = kind_of_states(trainer)
    if not here["zero_stage"]:
        yield True
        return
    assert path, "the Trainer loads a best checkpoint only where it has one"
    found = folders.read(Path(path))
    if _lies_as_here(found, here, trainer):
        yield True
        return
    if _stage_of(found, here["zero_stage"]) != here["zero_stage"] or _has_rigid_experts(here):
        log.warning(
            f"the best checkpoint, {path}, is of another ZeRO stage, or has experts under ZeRO-3 on other processes, "
            "and is not loaded: the final model is that of the last step. The best one: "
            f"packhaul export --checkpoint {path}"
        )
        yield False
        return
    from train.checkpoint.deepspeed_universal import weights_only

    with weights_only():
        trainer.state.best_model_checkpoint = str(_rearranged(found, trainer, here["zero_stage"], convert=False))
        yield True
    trainer.state.best_model_checkpoint = path
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        folders.clean(folders.run_dir_of(trainer.args), folders.UNIVERSAL)


def _lies_as_here(found: Checkpoint, here: dict[str, Any], trainer: CheckpointedTrainer) -> bool:
    """Whether its states are cut into parts as this launch cuts them."""
    same_parts = found.extra.get("autoep_size", 0) == here["autoep_size"]
    same_stage = _stage_of(found, here["zero_stage"]) == here["zero_stage"]
    return bool(same_parts and same_stage and found.world_size == trainer.args.world_size)


def _has_rigid_experts(here: dict[str, Any]) -> bool:
    """Whether DeepSpeed loads weights that were cut into other parts only together with the optimizer's states."""
    return bool(here["autoep_size"]) and here["zero_stage"] == 3


def _stage_of(found: Checkpoint, default: int | None) -> int | None:
    if "zero_stage" in found.extra:
        stage: int | None = found.extra["zero_stage"]
        return stage
    return default if any(name.startswith("global_step") for name in found.files) else None


def _check_possible(found: Checkpoint, before: dict[str, Any], here: dict[str, Any]) -> None:
    same = before["engine"] == here["engine"] and before["state_dict_type"] == here["state_dict_type"]
    if same and bool(before["zero_stage"]) == bool(here["zero_stage"]):
        return
    was, now = map(_name_of, (before, here))
    raise ValueError(
        f"{found.path} was written with {was}, this launch has {now}: the optimizer states cannot be taken over. "
        "Launch it as before, or make a model of it with packhaul export and begin a new run from that"
    )


def _check_experts(found: Checkpoint, before: dict[str, Any], here: dict[str, Any], config: RunConfig) -> None:
    """ZeRO-1 and 2 keep the optimizer's states of experts in groups of their own, ZeRO-3 does not."""
    was, now = before["zero_stage"], here["zero_stage"]
    if here["autoep_size"] and (was == 3) != (now == 3):
        raise ValueError(
            f"{found.path} was written with expert parallelism under ZeRO-{was}, this launch has ZeRO-{now}: "
            "DeepSpeed keeps the states of experts in another order there. Launch it as before, or make a model of it "
            "with packhaul export and begin a new run from that"
        )
    if config.own.reinitialize_optimizer and _has_rigid_experts(here):
        raise ValueError(
            f"{found.path}: reinitialize_optimizer: DeepSpeed loads experts under ZeRO-3 only together with the "
            "optimizer's states: remove it, and the states are rearranged"
        )


def _name_of(kind: dict[str, Any]) -> str:
    if kind["zero_stage"]:
        return f"ZeRO-{kind['zero_stage']}"
    more = f" and {kind['state_dict_type']}" if kind["state_dict_type"] else ""
    return f"{kind['engine']}{more}"


def _check_convertible(found: Checkpoint, optim: str, world_size: int) -> None:
    if optim in _CONVERTIBLE:
        return
    raise ValueError(
        f"{found.path} was written by {found.world_size} process(es) with {optim}, this world has {world_size}: "
        f"DeepSpeed can only rearrange the states of {', '.join(_CONVERTIBLE)}. Launch {found.world_size} process(es), "
        "or write reinitialize_optimizer: true to go on with the weights and fresh optimizer states"
    )


def _rearranged(found: Checkpoint, trainer: CheckpointedTrainer, stage: int, *, convert: bool) -> Path:
    """A folder with DeepSpeed's states for this launch."""
    world_size = trainer.args.world_size
    return prepare(found, trainer, lambda folder: _rearrange(found, folder, world_size, stage, convert))


def _rearrange(found: Checkpoint, folder: Path, world_size: int, stage: int, convert: bool) -> str | None:
    """Fill a folder with DeepSpeed's states; what went wrong, if anything."""
    from train.checkpoint.deepspeed_universal import complete_states, link_states

    _copy_small_files(found, folder)
    copy_random_states(found, folder, world_size)
    source = next(p for p in found.path.iterdir() if p.name.startswith("global_step"))
    if not convert:
        link_states(source, folder / source.name, world_size)
        shutil.copyfile(found.path / "latest", folder / "latest")
        return None
    if error := _convert(source, folder / f"{source.name}_universal"):
        return error
    complete_states(source, folder / f"{source.name}_universal", stage)
    return None


def _copy_small_files(found: Checkpoint, folder: Path) -> None:
    """Copy what the Trainer reads besides DeepSpeed's states."""
    for file in found.path.iterdir():
        if file.is_file() and file.suffix in (".json", ".pt") and not file.name.startswith("counters_"):
            shutil.copyfile(file, folder / file.name)


def _convert(source: Path, target: Path) -> str | None:
    """Run DeepSpeed's own converter; the end of its output, if it failed."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    needed = sum(f.stat().st_size for f in source.iterdir()) * 2  # fragments of the states, and the states
    if (free := shutil.disk_usage(target.parent).free) < needed:
        return f"about {needed / 2**30:.1f} GiB are needed for that in {target.parent}, {free / 2**30:.1f} GiB are free"
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stderr or done.stdout)[-2000:] if done.returncode else None
