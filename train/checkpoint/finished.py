"""Whether a run has ended before: its final model is there, and nothing is asked that would make it another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.checkpoint import folders
from train.checkpoint.folders import Checkpoint
from train.checkpoint.resume import final_model
from train.config.own_options import OWN_DEFAULTS, known_options
from train.config.run_config import RunConfig

# What decides no weight of the final model, or is compared by itself: the base model and the adapters by
# train.checkpoint.resume, the steps and the rows of a step below.
_COMPARED = (
    *("data", "model_name_or_path", "model_revision", "seed", "data_seed", "max_steps", "num_train_epochs"),
    *("bf16", "fp16", "per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy"),
)
_PLACES = ("output_dir", "run_name", "project", "use_cpu", "trust_remote_code", "disable_tqdm", "debug", "skip_memory")
_HARMLESS = (
    *("logging_", "log_", "save_", "report_to", "trackio_", "hub_", "push_to_hub", "include_", "dataloader_"),
    *("eval_on_start", "eval_accumulation", "eval_do_concat", "per_device_eval", "batch_eval", "prediction_loss_only"),
    *("ddp_", "gradient_checkpointing", "activation_", "torch_compile", "torch_empty_cache", "restore_callback"),
)
_OWN = ("on_bad_step", "spike_sigma", "early_stopping_patience", "early_stopping_threshold")


def finished_step(config: RunConfig, run_dir: Path, rows_per_step: int, total_steps: int) -> int | None:
    """The last step of a run that has its final model and is asked for no more steps, else None.

    The identity of the run is checked before (train.checkpoint.resume).

    Args:
        rows_per_step, total_steps: of this start.

    Raises:
        ValueError: the run has ended with other options, or is asked for fewer steps, or for more where no checkpoint
            is left to go on from.
    """
    final = final_model(run_dir) if config.own.resume == "auto" else None
    if final is None or "max_steps" not in final.extra:
        return None
    newest = folders.newest_complete(run_dir, _silent)
    if newest and newest.step > final.step:
        return None  # the run went on after its end
    planned = final.extra["max_steps"]
    if total_steps > planned:
        _check_goes_on(final, newest, planned, total_steps)
        return None
    if total_steps < planned:
        raise ValueError(
            f"{run_dir} finished before, after {planned} steps; {total_steps} are asked for: choose another "
            "output_dir, or export one of its checkpoints"
        )
    _check_options(final, config, rows_per_step)
    return final.step


def deciding_options(config: RunConfig) -> dict[str, Any]:
    """The options given that decide what the final model is; they go into its marker."""
    own: dict[str, Any] = {name: getattr(config.own, name) for name in _OWN}
    own |= {"precision": config.precision, "optim": config.optim}  # whose defaults the libraries compute
    return {name: _plain(v) for name, v in {**config.sft, **config.model, **own}.items() if _decides(name)}


def _check_goes_on(final: Checkpoint, newest: Checkpoint | None, planned: int, total_steps: int) -> None:
    if newest is None:
        raise ValueError(
            f"{final.path} finished before, after {planned} steps, and holds no checkpoint to go on from: the "
            f"{total_steps} steps asked for would begin again and replace its final model. Choose another output_dir"
        )


def _check_options(final: Checkpoint, config: RunConfig, rows_per_step: int) -> None:
    """Refuse to call a run finished that would end as another one."""
    rows = final.extra.get("rows_per_step", rows_per_step)
    changed = [] if rows == rows_per_step else [f"rows of a step {rows} then, {rows_per_step} now"]
    if (before := final.extra.get("options")) is not None:
        now = deciding_options(config)
        for name in sorted(before.keys() | now.keys()):
            then, here = (_plain(side.get(name, _default(name))) for side in (before, now))
            if then != here:
                changed.append(f"{name} {then} then, {here} now")
    if changed:
        raise ValueError(
            f"{final.path} finished before, with other options: {'; '.join(changed)}. They would make another model. "
            "Write what it was, or choose another output_dir"
        )


def _default(name: str) -> Any:
    option = known_options().get(name)  # None: the libraries have it no longer
    return OWN_DEFAULTS.get(name, option.default if option else None)


def _decides(name: str) -> bool:
    compared = name in _COMPARED or name.startswith(("lora_", "use_peft", "use_dora", "use_rslora"))
    return not compared and not name.startswith((*_PLACES, *_HARMLESS)) and not name.endswith("token")


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _silent(message: str) -> None:
    pass
