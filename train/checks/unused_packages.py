"""Packages that a run does not use are not imported: nearly all of its start-up time is imports.

transformers, TRL and accelerate import peft, bitsandbytes (and with it torch's compiler), DeepSpeed and wandb wherever
they are installed. Each asks `importlib.util.find_spec` first, which answers None for a module that `sys.modules` holds
as None: to them the package is then not installed. Garbage collection is off meanwhile: imports leave hardly any.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

from train.checks.launch import launch_from_environment
from train.checks.model_files import needs_bitsandbytes
from train.config.run_config import RunConfig


def leave_out_unused(config: RunConfig) -> None:
    """Call it before the libraries are imported, in a process that does nothing else: it cannot be undone."""
    gc.disable()
    for name in unused(config):
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]


def end_start() -> None:
    """Collect garbage again; what exists by now is not looked through each time."""
    if not gc.isenabled():
        gc.enable()
        gc.freeze()


def unused(config: RunConfig) -> Iterator[str]:
    """The packages that are slow to import and that this run does not need."""
    if config.value("trust_remote_code"):
        return  # it may need anything
    if not config.value("use_peft"):
        yield "peft"
    if not needs_bitsandbytes(config):
        yield "bitsandbytes"
    launch = launch_from_environment()
    if launch is None or launch.distributed_type != "DEEPSPEED":
        yield "deepspeed"
    trackers = config.value("report_to")
    listed = {trackers} if isinstance(trackers, str) else set(trackers or ())
    if not listed & {"wandb", "all"}:
        yield "wandb"
