"""FSDP2, made to compute what plain data parallelism computes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)


def keep_precision(accelerator: Any) -> None:
    """Replace accelerate's policy of mixed precision, before anything is sharded.

    accelerate casts what the model returns to half precision, and with it the fp32 log-probabilities of TRL's fused
    head: losses were off by up to 2e-3 of their size. And it sums gradients over processes in half precision. DDP does
    neither.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or getattr(plugin, "fsdp_version", 1) != 2 or plugin.mixed_precision_policy is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    half = plugin.mixed_precision_policy.param_dtype
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)


def keep_gradients_sharded(args: Any) -> None:
    """Let each micro-batch of a step hand its gradients on, unless the run config says otherwise.

    By itself accelerate has each process keep the gradients of the whole model, unsharded, until the last micro-batch.

    Args:
        args: the SFTConfig; its accelerator_config is changed.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    given = args.accelerator_config.gradient_accumulation_kwargs or {}
    args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}
    if args.gradient_accumulation_steps > 1 and not given.get("sync_each_batch", True):
        log.info("sync_each_batch: false: each process holds the gradients of the whole model between micro-batches")


def take_states_unscaled(trainer: Any) -> None:
    """Let an optimizer's states be saved and loaded past the gradient scaler of fp16.

    torch makes states that are not there yet by a step without gradients, which a scaler refuses: no run resumed.
    """
    if trainer.accelerator.scaler is None or not trainer.accelerator.is_fsdp2:
        return
    for name in ("_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler"):
        setattr(trainer, name, _unscaled(trainer, getattr(trainer, name)))


def _unscaled(trainer: Any, original: Callable[[str | None], None]) -> Callable[[str | None], None]:
    def call(folder: str | None) -> None:
        optimizer = trainer.optimizer  # accelerate's, once it is prepared
        scaler, optimizer.scaler = getattr(optimizer, "scaler", None), None
        try:
            original(folder)
        finally:
            optimizer.scaler = scaler

    return call


def whole(norm: Any) -> Any:
    """A gradient norm, of which each process may hold a part."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
