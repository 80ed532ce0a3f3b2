"""What preflight adds about memory, disk and hours when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.shards import Manifest
from train.checks.disk_space import free_bytes
from train.checks.launch import Launch
from train.checks.run_schedule import Schedule, derive
from train.config.run_config import RunConfig
from train.memory import hours, page, skeleton
from train.memory.asked import Asked
from train.memory.attention_choice import chosen
from train.memory.estimate import GIB
from train.memory.fit import Fit
from train.memory.from_run import load_config, setting_of
from train.memory.measured_speed import Speed, speed_nearby, speed_of
from train.memory.states import checkpoint_bytes


def page_lines(
    config: RunConfig, manifest: Manifest, launch: Launch | None, processes: int, asked: Asked
) -> tuple[list[str], list[str]]:
    """Lines of the page, and notes to them.

    Raises:
        ValueError, OSError: something cannot be counted, or the model's config is not here.
    """
    fit, reason = make_fit(config, manifest, launch, processes, asked.gpu_memory_gib)
    schedule = derive(config, manifest["splits"]["train"], processes)
    lines = [*page.lines(fit, reason), *_saving(config, fit, asked), *_hours(config, manifest, fit, schedule, asked)]
    if asked.suggest:
        lines += page.suggestion_lines(fit)
    return lines, list(page.notes(fit))


def make_fit(
    config: RunConfig,
    manifest: Manifest,
    launch: Launch | None,
    processes: int,
    memory_gib: float | None,
    *,
    local: bool = False,
) -> tuple[Fit, str]:
    """The run's estimates, and why its attention was chosen.

    Args:
        local: the model is on this machine, and no hub is asked for it.

    Raises:
        ValueError, OSError: as `page_lines`.
    """
    model_config = load_config(config, local=local)
    setting = setting_of(config, manifest, launch, processes, model_config)
    setting, reason = chosen(setting, model_config, config.value("attn_implementation"))
    whole = skeleton.build(model_config, bool(config.value("trust_remote_code")))
    limit = _found_memory(config) if memory_gib is None else round(memory_gib * GIB)
    return Fit(whole, setting, limit), reason


def _found_memory(config: RunConfig) -> int | None:
    """Of the GPU here, if there is one."""
    import torch

    if config.value("use_cpu") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def _saving(config: RunConfig, fit: Fit, asked: Asked) -> Iterator[str]:
    size = checkpoint_bytes(fit.estimate.traced.weights, fit.setting)
    free = free_bytes(Path(config.sft["output_dir"]))
    text = f"{page.gib(size)} each, over all processes; {page.gib(free)} free in {config.sft['output_dir']}"
    if asked.save_gib_per_second:
        seconds = size / GIB / asked.save_gib_per_second
        text += f"; {seconds:,.1f} s to write at {asked.save_gib_per_second:g} GiB/s"
    yield f"checkpoint   {text}"


def _hours(config: RunConfig, manifest: Manifest, fit: Fit, schedule: Schedule, asked: Asked) -> Iterator[str]:
    """From a throughput that was given or measured, else from operations and a peak, else not known."""
    speed = _speed(config, manifest, fit, asked)
    if isinstance(speed, str):
        yield f"hours        not known, {speed}"
        return
    yield (
        f"hours        {hours.hours_at(speed.tokens_per_second, schedule):,.1f} of training on {schedule.processes} "
        f"GPU(s), at {speed.tokens_per_second:,.0f} tokens/s each, {speed.source}"
    )


def _speed(config: RunConfig, manifest: Manifest, fit: Fit, asked: Asked) -> Speed | str:
    """Of one GPU, or why it is not known."""
    if asked.tokens_per_second:
        return Speed(asked.tokens_per_second, "as given")
    if asked.from_run:
        return speed_of(asked.from_run) or f"{asked.from_run} has logged no throughput"
    name = asked.gpu_name or _gpu_here(config)
    if not asked.mfu and (found := _nearby(config, fit, name)):
        return found
    peak = _peak(name, config) if name else None
    if peak is None:
        missing = f"the peak of {name} is not known" if name else "no GPU is named"
        return f"{missing}: give --gpu_name such as H100, or --from_run or --tokens_per_second of one GPU"
    return _calculated(config, manifest, fit, asked.mfu, str(name), peak)


def _nearby(config: RunConfig, fit: Fit, name: str | None) -> Speed | None:
    return speed_nearby(config, fit.setting, "cpu" if config.value("use_cpu") else name)


def _calculated(config: RunConfig, manifest: Manifest, fit: Fit, mfu: float | None, name: str, peak: float) -> Speed:
    share = mfu or (hours.MFU_COMPILED if fit.setting.compiled else hours.MFU)
    lora = fit.setting.adapters is not None
    rate = hours.tokens_per_second(fit.skeleton.model, manifest["splits"]["train"], mfu=share, peak=peak, lora=lora)
    whence = "as given" if mfu else "measured on one H200 at 1.7B"
    return Speed(rate, f"calculated from an MFU of {share:g} of {name} ({whence})")


def _gpu_here(config: RunConfig) -> str | None:
    import torch

    here = torch.cuda.is_available() and not config.value("use_cpu")
    return torch.cuda.get_device_name() if here else None


def _peak(name: str, config: RunConfig) -> Any:
    from trl.trainer.utils import get_peak_flops

    from train.memory.setting import HALF

    return get_peak_flops(name, HALF.get(config.precision, "float32"))
