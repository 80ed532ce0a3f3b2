"""Work-arounds for DeepSpeed's universal checkpoint: states that its converter leaves out, errors of its loading.

Each work-around has a test that fails when the installed DeepSpeed no longer needs it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

_STATES = ("fp32", "exp_avg", "exp_avg_sq")


def complete_states(source: Path, universal: Path, stage: int) -> None:
    """Add what the other ZeRO stage looks for: the converter writes what the stage that it reads would.

    Args:
        source: DeepSpeed's folder of the checkpoint.
        universal: what the converter made of it.
        stage: of the launch.
    """
    from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, PARAM, PARAM_GROUPS

    common = torch.load(universal / "zero" / "optimizer_state.pt", weights_only=False)
    parameters = sorted({file.parent for file in (universal / "zero").rglob("fp32.pt")})
    step = _step(common.get(OPTIMIZER_STATE_DICT), parameters)
    groups = common[PARAM_GROUPS]
    common["ds_version"] = common.get("ds_version") or _ds_version(source)
    common[OPTIMIZER_STATE_DICT] = {"state": {0: {"step": step}}, "param_groups": groups}
    torch.save(common, universal / "zero" / "optimizer_state.pt")
    for folder in parameters:
        for file in (folder / f"{name}.pt" for name in _STATES):
            content = torch.load(file, weights_only=False) if file.exists() else None
            if torch.is_tensor(content):
                torch.save({PARAM: content}, file)
        if step is not None and (folder / "exp_avg.pt").exists():
            torch.save(step, folder / "step.pt")
    _name_model_states(universal, stage)


def _step(states: dict[str, Any] | None, parameters: list[Path]) -> Any:
    """The optimizer's own step counter."""
    if states:
        return states["state"][0]["step"]
    files = [folder / "step.pt" for folder in parameters if (folder / "step.pt").exists()]
    return torch.load(files[0], weights_only=False) if files else None


def _ds_version(source: Path) -> str:
    file = next(source.glob("*_optim_states.pt"))
    version: str = torch.load(file, weights_only=False, map_location="cpu", mmap=None)["ds_version"]
    return version


def _name_model_states(universal: Path, stage: int) -> None:
    """The file of the counters and the scheduler, under the name that the stage looks for."""
    wanted = universal / ("zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt")
    if not wanted.exists():
        candidates = sorted(universal.glob("*mp_rank_00_model_states.pt"))
        shutil.copyfile(next(f for f in candidates if f.name.startswith(("mp_rank_", "zero_pp_rank_0_"))), wanted)


def link_states(source: Path, target: Path, world_size: int) -> None:
    """Make a folder with model states for each rank of this launch, which may have more ranks than have written.

    Only the counters of rank 0 are read from there; the weights come from all that were written.
    """
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file.resolve())
    first = target / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    for rank in range(world_size):
        link = target / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        if first.exists() and not link.exists():
            link.symlink_to(first.resolve())


@contextlib.contextmanager
def loading_universal(trainer: CheckpointedTrainer) -> Iterator[None]:
    """Make DeepSpeed load the universal form in the `train()` within, with its errors mended, and only once."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    name = "load_hp_checkpoint_state_from_checkpoint_dir_stage3"
    load = getattr(Stage3, name)
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    config.setdefault("checkpoint", {})["load_universal"] = True
    setattr(Stage3, name, lambda self, folder: mended_load(self, folder, load))
    try:
        yield
    finally:
        setattr(Stage3, name, load)


def mended_load(optimizer: Any, folder: str, load: Any) -> None:
    """ZeRO-3's loading gives all sub-groups one and the same `step` tensor, which then counts several times a step, and
    all parameter groups the settings of the first, such as its weight decay (DeepSpeed 0.19.8, stage3.py)."""
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.optimizer.param_groups]
    load(optimizer, folder)
    for flat in optimizer.fp32_partitioned_groups_flat:
        state = optimizer.optimizer.state.get(flat, {})
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    saved = torch.load(Path(folder) / "zero" / "optimizer_state.pt", weights_only=False)["param_groups"]
    for i, group in enumerate(optimizer.optimizer.param_groups):
        settings = saved[i] if len(saved) == len(own) else {"weight_decay": own[i]["weight_decay"]}
        group.update({k: v for k, v in settings.items() if k != "params"})


def after_loading(trainer: CheckpointedTrainer) -> None:
    """From here on DeepSpeed reads its usual form again, such as the best checkpoint at the end."""
    if trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        trainer.deepspeed._config.load_universal_checkpoint = False


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make the Trainer load weights, scheduler and counters, but no optimizer states."""
    import transformers.trainer

    original = transformers.trainer.deepspeed_load_checkpoint

    def load(engine: Any, path: str, load_module_strict: bool = True) -> None:
        transformers.trainer.deepspeed_load_checkpoint = original
        engine.load_checkpoint(path, load_module_strict=load_module_strict, load_optimizer_states=False)

    transformers.trainer.deepspeed_load_checkpoint = load
    try:
        yield
    finally:
        transformers.trainer.deepspeed_load_checkpoint = original
