"""Where the DeepSpeed JSON disagrees with the accelerate YAML that names it, or with the run config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from train.checks.expert_parallel import check_expert_parallel
from train.config.run_config import RunConfig

# With offloaded states, accelerate maps these to DeepSpeed's optimizer of the same kind, and all others to its Adam.
_MAPPED = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adagrad", "lion_32bit")
# ZeRO hands an optimizer flat pieces of the weights; the updates of these depend on a weight's shape or norm.
_NEED_WHOLE_WEIGHTS = ("adafactor", "galore", "apollo", "stable_adamw")


def check_deepspeed(
    settings: Mapping[str, Any],
    origin: str,
    zero3_init: bool | None,
    launch_origin: str,
    config: RunConfig,
    processes: int | None,
) -> Iterator[str]:
    """Every disagreement between the three files.

    Args:
        settings: the DeepSpeed JSON.
        origin: its name, for messages.
        zero3_init: the accelerate YAML's zero3_init_flag.
        launch_origin: the accelerate YAML's name.
        processes: the world size, if known.
    """
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage")
    if type(stage) is not int or not 0 <= stage <= 3:
        yield f"{origin}: expected zero_optimization.stage 0, 1, 2 or 3, found {stage!r}: write a number"
    elif zero3_init is not None and zero3_init != (stage == 3):
        fix = "true" if stage == 3 else "false"
        why = "each process would load the whole model first" if stage == 3 else "it is for ZeRO-3 only"
        yield f"{launch_origin}: zero3_init_flag is {zero3_init}, but {origin} has stage {stage}: {why}; write {fix}"
    yield from _check_numbers(settings, origin, config, processes)
    yield from _check_precision(settings, origin, config)
    yield from _check_optimizer(settings, zero, origin, config)
    yield from check_expert_parallel(settings, origin, config, processes)


def _check_numbers(settings: Mapping[str, Any], origin: str, config: RunConfig, processes: int | None) -> Iterator[str]:
    micro, accumulation = config.value("per_device_train_batch_size"), config.value("gradient_accumulation_steps")
    total = None if processes is None else micro * accumulation * processes
    wanted = {
        "train_micro_batch_size_per_gpu": (micro, "per_device_train_batch_size"),
        "gradient_accumulation_steps": (accumulation, "gradient_accumulation_steps"),
        "train_batch_size": (total, "micro batch x accumulation x processes"),
        "gradient_clipping": (config.value("max_grad_norm"), "max_grad_norm"),
    }
    for key, (value, meaning) in wanted.items():
        if key not in settings and key != "train_batch_size":
            yield f'{origin}: {key} is missing: DeepSpeed takes its own default, not {meaning}; write "{key}": "auto"'
        elif key in settings and value is not None and settings[key] not in ("auto", value):
            yield f'{origin}: {key} is {settings[key]}, in the run config {value} ({meaning}): write "auto"'


def _check_precision(settings: Mapping[str, Any], origin: str, config: RunConfig) -> Iterator[str]:
    for name in ("bf16", "fp16"):
        enabled = (settings.get(name) or {}).get("enabled", "auto")
        trained_in = config.precision == name
        if enabled != "auto" and bool(enabled) != trained_in:
            yield f'{origin}: {name}.enabled is {enabled}, in the run config {name} is {trained_in}: write "auto"'


def _check_optimizer(
    settings: Mapping[str, Any], zero: Mapping[str, Any], origin: str, config: RunConfig
) -> Iterator[str]:
    for section, option in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if section in settings:
            yield f"{origin}: section {section!r} would silently replace the run config's {option}: remove it"
    if zero.get("stage") in (1, 2, 3) and any(part in config.optim for part in _NEED_WHOLE_WEIGHTS):
        yield (
            f"{origin}: ZeRO cuts the weights into flat pieces, on which {config.optim} would silently make other "
            "updates, different ones for each number of processes: choose another optim (adamw_8bit takes little "
            "memory too), or train without DeepSpeed"
        )
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    optim, forced = config.optim, settings.get("zero_force_ds_cpu_optimizer", True)
    if device in ("cpu", "nvme") and forced and optim not in _MAPPED:
        yield (
            f"{origin}: offload_optimizer {device} would silently replace {optim} by DeepSpeed's own Adam: add "
            '"zero_force_ds_cpu_optimizer": false at the top level, or choose another optim'
        )


def deepspeed_notes(settings: Mapping[str, Any], origin: str) -> Iterator[str]:
    """What works, but differently from what a user may expect."""
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        yield (
            f"{origin}: without stage3_gather_16bit_weights_on_model_save: true no weights file is written at the end; "
            "zero_to_fp32.py in the checkpoint rebuilds it"
        )
