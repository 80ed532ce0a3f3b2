"""Whether the loss is a sum over tokens of what the fused head gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from trl import SFTConfig, SFTTrainer


def computes_plain_loss(trainer: SFTTrainer) -> bool:
    """Whether it is such a sum; label smoothing needs all logits."""
    smoothed = trainer.label_smoother is not None and cast("SFTConfig", trainer.args).loss_type == "nll"
    counted = trainer.model_accepts_loss_kwargs  # else the Trainer gives no number of tokens to divide by
    return counted and trainer.compute_loss_func is None and not smoothed


def check_parts_suffice(trainer: SFTTrainer, sequence_parallel: int) -> None:
    """Refuse a loss that needs whole rows where ranks hold parts of them.

    Raises:
        ValueError: it is no sum over tokens, or a router's loss is added.
    """
    if sequence_parallel > 1 and (trainer.aux_loss_enabled or not computes_plain_loss(trainer)):
        raise ValueError("sequence_parallel: the loss of this model, or its router's, needs whole rows: leave it out")
