"""The loss of single documents under a model: each by itself, in right-padded batches of like lengths.

A causal model's tokens do not see what stands to their right, so padding changes nothing but rounding, whatever the
attention and whether layers carry a state or not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_prep.packed_rows import PackedDocument
from data_prep.shards import IGNORE_INDEX

PART = 1024  # tokens whose logits are in fp32 at once


@dataclass(frozen=True)
class Score:
    """Of one document."""

    loss: float  # mean negative log-likelihood of its trained tokens, in nats; NaN without one
    accuracy: float  # share of them that are the model's first guess


def score(model: Any, documents: Sequence[PackedDocument], batch_tokens: int) -> list[Score]:
    """The scores of documents, in their order.

    Args:
        model: a causal language model of transformers, in eval mode.
        batch_tokens: most tokens of a batch, padding included; a longer document is a batch of its own.

    Raises:
        ValueError: a document holds a token id that the model has no row for.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max((int(document.input_ids.max()) for document in documents), default=0)
    if largest >= rows:
        raise ValueError(f"the shards hold the token id {largest}, the model rows for {rows}: it is not their model")
    found: dict[int, Score] = {}
    for batch in batches([document.input_ids.size for document in documents], batch_tokens):
        scores = _score_batch(model, [documents[number] for number in batch])
        found |= dict(zip(batch, scores, strict=True))
    return [found[number] for number in range(len(documents))]


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of documents that are padded together: of like lengths, longest first."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _score_batch(model: Any, documents: list[PackedDocument]) -> list[Score]:
    width = documents[0].input_ids.size  # the longest comes first
    ids, labels = np.zeros((len(documents), width), np.int64), np.full((len(documents), width), IGNORE_INDEX)
    for row, document in enumerate(documents):
        ids[row, : document.input_ids.size] = document.input_ids
        labels[row, : document.input_ids.size] = document.labels
    mask = np.arange(width) < np.array([[document.input_ids.size] for document in documents])
    targets = labels[:, 1:]
    places = np.flatnonzero((targets != IGNORE_INDEX).any(axis=0))  # whose next token is trained in some document
    logits = _logits(model, ids, mask, places)
    return [_of_document(logits[row], targets[row, places]) for row in range(len(documents))]


def _logits(model: Any, ids: np.ndarray, mask: np.ndarray, places: np.ndarray) -> torch.Tensor:
    """(documents, places, vocabulary): the model's own, at these places alone where it can leave out the others."""
    device = model.get_input_embeddings().weight.device
    keep = torch.from_numpy(places).to(device)
    given = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).long().to(device)}
    leaves_out = "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.inference_mode():
        logits: torch.Tensor = model(
            **given, use_cache=False, **({"logits_to_keep": keep} if leaves_out else {})
        ).logits
    return logits if leaves_out else logits[:, keep.to(logits.device)]


def _of_document(logits: torch.Tensor, targets: np.ndarray) -> Score:
    chosen = targets != IGNORE_INDEX
    if not chosen.any():
        return Score(float("nan"), float("nan"))
    wanted = torch.from_numpy(targets[chosen]).to(logits.device)
    parts = logits[torch.from_numpy(chosen).to(logits.device)].split(PART)
    losses, right = [], []
    for part, target in zip(parts, wanted.split(PART), strict=True):
        losses.append(torch.nn.functional.cross_entropy(part.float(), target, reduction="none").double())
        right.append(part.argmax(-1) == target)
    return Score(torch.cat(losses).mean().item(), torch.cat(right).double().mean().item())
