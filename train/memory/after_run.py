"""What a run has measured, kept at its end: its peak of memory next to the estimate, and its throughput.

It is for the next run's preflight, and says how far the estimate can be trusted here. The estimate takes 1 to 3 seconds
of the first process, after the model is saved.
"""

from __future__ import annotations

import logging
import statistics
from typing import Any

from data_prep.shards import Manifest
from train.config.run_config import RunConfig

log = logging.getLogger(__name__)

GIB = 2**30
_RATE = "tokens_per_second_per_gpu"


def memory_before(device: Any) -> float:
    """GiB that a process on a CPU has taken before its model is loaded: the libraries. 0 on a GPU, whose memory is
    that of tensors alone."""
    from train.loop.metrics import memory_peak_gib

    return memory_peak_gib(device) if device.type == "cpu" else 0.0


def keep(trainer: Any, config: RunConfig, manifest: Manifest, before: float) -> None:
    """Say it, write it into run.json, and give it to the trackers. Whatever fails is a line: the model is saved.

    Args:
        trainer: after training, on any process; the first one does the work.
        before: GiB, of `memory_before`.
    """
    in_grace_period = trainer.stop is not None and trainer.stop.signals.first() is not None
    if in_grace_period or not trainer.is_world_process_zero():
        return
    if not trainer.meter.memory:
        log.info("memory: not measured: this start had no step left to log")
        return
    try:
        found = {**measured(trainer, before), **_conditions(trainer, manifest)}
        found |= estimated(trainer, config, manifest, found["memory_peak_gib"] - before)
        _keep(trainer, found)
    except Exception as error:  # whatever it is: figures are no reason to fail a run
        log.warning(f"what was measured is not kept in run.json: {type(error).__name__}: {error}")


def measured(trainer: Any, before: float) -> dict[str, Any]:
    """What run.json has as `measured`: rates are the median of the logs."""
    import torch

    device = trainer.accelerator.device
    rates = [entry[_RATE] for entry in trainer.state.log_history if entry.get(_RATE)]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **({_RATE: statistics.median(rates)} if rates else {}),
        "memory_peak_gib": trainer.meter.memory,
        **({"memory_before_gib": before} if before else {}),
    }


def _conditions(trainer: Any, manifest: Manifest) -> dict[str, Any]:
    """Under which the rate was measured, for another run's preflight."""
    from train.checks.launch import launch_from_environment
    from train.memory.from_run import sharding_of
    from train.memory.measured_speed import conditions

    sharding = sharding_of(launch_from_environment(), trainer.args.world_size)
    return conditions(sharding, manifest["seq_len"])


def estimated(trainer: Any, config: RunConfig, manifest: Manifest, taken: float) -> dict[str, float]:
    """The estimate and its ratio to what was taken; empty, with a line that says why, where nothing can be counted."""
    from train.checks.launch import launch_from_environment
    from train.memory.preflight_page import make_fit
    from train.model.documentwise import mixers

    if mixers(trainer.model):
        slow = "layers that carry a state take minutes to trace (packhaul preflight does)"
        log.info(f"memory: {taken:.2f} GiB at the peak; not estimated here: {slow}")
        return {}
    world_size = trainer.args.world_size
    try:
        fit, _ = make_fit(config, manifest, launch_from_environment(), world_size, None, local=True)
        estimated = fit.estimate.peak / GIB
    except Exception as error:  # a model that cannot be counted, or whatever its code meets without data
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        log.info(f"memory: {taken:.2f} GiB at the peak; not estimated: {reason}")
        return {}
    log.info(_line(taken, estimated, trainer.meter.memory - taken))
    return {"memory_estimated_gib": estimated, "memory_estimate_ratio": estimated / max(taken, 1e-9)}


def _line(taken: float, estimated: float, before: float) -> str:
    apart = f" besides {before:.2f} GiB of libraries" if before else ""
    ratio = estimated / max(taken, 1e-9)
    return f"memory: {taken:.2f} GiB at the peak{apart}, {estimated:.2f} GiB estimated (ratio {ratio:.2f})"


def _keep(trainer: Any, found: dict[str, Any]) -> None:
    from train.checkpoint.folders import run_dir_of
    from train.run import run_record

    run_record.keep_measured(run_dir_of(trainer.args), found)
    figures = {name: found[name] for name in ("memory_estimated_gib", "memory_estimate_ratio") if name in found}
    if figures:
        trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, figures)
