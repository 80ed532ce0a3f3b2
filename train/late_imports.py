"""What makes the seconds between launch and first step few: nearly all of them are imports.

Packages that a run does not use are not imported. transformers, TRL and accelerate import peft, bitsandbytes (and with
it torch's compiler), DeepSpeed and wandb wherever they are installed. Each asks `importlib.util.find_spec` first, which
answers None for a module that `sys.modules` holds as None: to them the package is then not installed. And garbage is
not collected meanwhile: modules are none.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

from train.launch import launch_from_environment
from train.model_files import needs_bitsandbytes


def leave_out_unused(config: Any) -> None:
    """For a process of its own, before the libraries are imported: it cannot be taken back there."""
    gc.disable()
    for name in unused(config):
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]


def end_start() -> None:
    """Collect garbage again; what is there by now stays, and is not looked through each time."""
    if not gc.isenabled():
        gc.enable()
        gc.freeze()


def unused(config: Any) -> Iterator[str]:
    """The packages, of those that cost most to import, that nothing in this run needs."""
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
