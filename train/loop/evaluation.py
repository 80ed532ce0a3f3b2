"""Evaluation metrics: token-weighted loss and accuracy, per source and overall.

The Trainer's own eval_loss is a mean over batches: the same data gives another number for each batch size. Here the
negative log-likelihoods of all trained tokens of all processes are summed in float64 and divided once, at the end. So
neither batch size nor world size changes the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint.folders import step_of
from train.loop.data import BATCH_EXTRAS
from train.loop.metrics import document_sources, document_sums

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

log = logging.getLogger(__name__)


def sum_by_source(
    model: Any, batches: Iterable[dict[str, torch.Tensor]], num_sources: int, accelerator: Accelerator
) -> torch.Tensor:
    """Sums over all tokens of all processes' batches.

    Args:
        model: with TRL's fused LM head, in eval mode.
        batches: as SourceCollator makes them, on the model's device; of parts of rows, each part once.
        num_sources: number of sources in the manifest.

    Returns:
        (num_sources, 3) float64: negative log-likelihood in nats, correct first guesses, trained tokens.
    """
    import torch

    sums = torch.zeros(num_sources, 3, dtype=torch.float64, device=accelerator.device)
    with torch.no_grad():
        for batch in batches:
            sources = document_sources(batch)
            inputs = {name: value for name, value in batch.items() if name not in BATCH_EXTRAS}
            # use_cache=False: with a cache, transformers ignores the packing and documents see each other.
            outputs = model(**inputs, fused_lm_head=True, use_cache=False)
            sums.index_add_(0, sources, document_sums(outputs, batch))
    return accelerator.reduce(sums, reduction="sum")


def evaluation_metrics(sums: torch.Tensor, names: list[str], prefix: str) -> dict[str, float]:
    """{prefix}_loss and {prefix}_token_accuracy overall, {prefix}_{source}_loss ... for each source with tokens."""
    rows = {"": sums.sum(dim=0).tolist(), **{f"_{n}": row for n, row in zip(names, sums.tolist(), strict=True)}}
    metrics = {}
    for name, (loss, correct, tokens) in rows.items():
        if tokens:
            metrics[f"{prefix}{name}_loss"] = loss / tokens
            metrics[f"{prefix}{name}_token_accuracy"] = correct / tokens
    metrics[f"{prefix}_tokens"] = rows[""][2]
    return metrics


NOTICED = 1e-3  # nats; what is less may be rounding


def report_better_base(trainer: Any) -> None:
    """Name the sources on which training has made the model worse."""
    state = trainer.state
    loaded = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    if worse := better_base(state.log_history, trainer.baseline, step_of(Path(loaded)) if loaded else None):
        log.warning(f"the base model has a lower held-out loss than the tuned one. {'; '.join(worse)}")


def better_base(history: list[dict[str, Any]], baseline: dict[str, float], step: int | None) -> list[str]:
    """In words, where the base model's held-out loss is lower than that of the model that the run ends with.

    Args:
        history: the trainer's log.
        baseline: the base model's losses, by metric; empty where it was not evaluated.
        step: of the model, where it is not that of the last evaluation.
    """
    evaluations = [entry for entry in history if "eval_loss" in entry and (step is None or entry["step"] == step)]
    if not evaluations or not evaluations[-1]["step"]:
        return []
    last, found = evaluations[-1], []
    for metric, base in baseline.items():
        if last.get(metric, base) - base > NOTICED:
            source = metric.removeprefix("eval_").removesuffix("loss").removesuffix("_") or "all sources together"
            found.append(f"{source}: {base:.4f} before, {last[metric]:.4f} after step {last['step']}")
    return found
