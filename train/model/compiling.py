"""`torch_compile`: what is compiled, rows of one length for it, and going on uncompiled where compiling fails."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transformers import TrainerCallback

log = logging.getLogger(__name__)


def install(trainer: Any, seq_len: int) -> None:
    """Before the first step: fill rows up to one length, and let what cannot be compiled run as it is.

    Args:
        trainer: a PackedSFTTrainer.
        seq_len: most tokens of a packed row.
    """
    if trainer.accelerator.state.dynamo_plugin.backend.value == "NO":
        return
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True  # whole runs are not lost for a compiler: see CompileReport
    _fill_rows(trainer, seq_len)
    trainer.add_callback(CompileReport())


def _fill_rows(trainer: Any, seq_len: int) -> None:
    """Each further length of a row would be compiled for. What fills rows up is not trained, counted or seen; only a
    mixture's balancing loss would count it, so there rows stay as they are."""
    if trainer.args.pad_to_multiple_of or trainer.aux_loss_enabled:
        return
    trainer.args.pad_to_multiple_of = seq_len
    trainer.data_collator.collator.pad_to_multiple_of = seq_len
    log.info(f"torch.compile: rows are filled up to pad_to_multiple_of: {seq_len}, so that they have one length")


class CompileReport(TrainerCallback):
    """Says once, after the first step, if training goes on uncompiled: torch itself prints only why."""

    def __init__(self) -> None:
        self.said, self.before = False, counted()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Only at the first step of this process."""
        if self.said:
            return
        self.said = True
        failed, graphs = (now - before for now, before in zip(counted(), self.before, strict=True))
        if not graphs:
            log.warning(
                "torch.compile: nothing could be compiled (torch has said why, above): training goes on uncompiled, "
                "slower and no less right; torch_compile: false leaves it out"
            )
        elif failed:
            log.warning(f"torch.compile: {failed} pieces of the model run uncompiled: torch has said why, above")


def counted() -> tuple[int, int]:
    """Pieces of code that torch could not compile in this process, and graphs that it has compiled."""
    from torch._dynamo.utils import counters

    frames = counters["frames"]
    return frames["total"] - frames["ok"], counters["stats"]["unique_graphs"]


def describe(plugin: Any, model: Any) -> str | None:
    """A line that says what is compiled; None if nothing is.

    Args:
        plugin: accelerate's TorchDynamoPlugin.
        model: before it is compiled.
    """
    if plugin.backend.value == "NO":
        return None
    blocks = _repeated_blocks(model) if plugin.use_regional_compilation else []
    what = ", ".join(f"one {kind} for {count}" for kind, count in blocks)
    mode = "" if plugin.mode in (None, "default") else f", {plugin.mode}"
    return f"torch.compile ({plugin.backend.value.lower()}{mode}): {what or 'the whole model'}"


def _repeated_blocks(model: Any) -> list[tuple[str, int]]:
    """(class, how many) of the lists of blocks that accelerate compiles; not of those within a block."""
    from accelerate.utils.other import is_repeated_blocks

    lists = {name: module for name, module in model.named_modules() if is_repeated_blocks(module)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [(type(lists[name][0]).__name__, len(lists[name])) for name in outer]


def eagerly(plugin: Any) -> AbstractContextManager[Any]:
    """A context in which what `torch_compile` compiles runs uncompiled. torch keeps 8 versions of a layer; a few calls
    with other lengths would use them up, and training would silently go on uncompiled. Without `torch_compile` nothing
    changes, so that flex_attention, which compiles itself, is checked as it trains."""
    if plugin.backend.value == "NO":
        return nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")
