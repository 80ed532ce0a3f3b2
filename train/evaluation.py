"""Token-weighted loss and accuracy, per source and overall: independent of batch size and of the number of processes.

The Trainer's own eval_loss is a mean over batches: the same data gives another number for each batch size. Here the
negative log-likelihoods of all trained tokens are summed in float64 and divided once, at the end, over all processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def sum_by_source(
    model: Any, batches: Iterable[dict[str, torch.Tensor]], num_sources: int, accelerator: Accelerator
) -> torch.Tensor:
    """Sums over all tokens of all processes' batches.

    Args:
        model: with TRL's fused LM head, in eval mode.
        batches: as SourceCollator makes them, on the model's device.
        num_sources: number of sources in the manifest.

    Returns:
        (num_sources, 3) float64: negative log-likelihood in nats, correct first guesses, trained tokens.
    """
    import torch

    sums = torch.zeros(num_sources, 3, dtype=torch.float64, device=accelerator.device)
    with torch.no_grad():
        for batch in batches:
            sources = batch.pop("source_ids")[0, 1:]
            batch.pop("document_rows", None)
            # use_cache=False: with a cache, transformers ignores the packing and documents see each other.
            outputs = model(**batch, fused_lm_head=True, use_cache=False)
            columns = torch.stack([-outputs.log_probs[0], outputs.is_top1[0], outputs.label_mask[0]], dim=1)
            sums.index_add_(0, sources, columns.to(torch.float64))
    return accelerator.reduce(sums, reduction="sum")


def metrics_by_source(sums: torch.Tensor, names: list[str], prefix: str) -> dict[str, float]:
    """{prefix}_loss and {prefix}_token_accuracy overall, {prefix}_{source}_loss ... for each source with tokens."""
    rows = {"": sums.sum(dim=0).tolist(), **{f"_{n}": row for n, row in zip(names, sums.tolist(), strict=True)}}
    metrics = {}
    for name, (loss, correct, tokens) in rows.items():
        if tokens:
            metrics[f"{prefix}{name}_loss"] = loss / tokens
            metrics[f"{prefix}{name}_token_accuracy"] = correct / tokens
    metrics[f"{prefix}_tokens"] = rows[""][2]
    return metrics
