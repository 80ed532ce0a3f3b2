"""The proof that an export is the model that was trained: both give the same documents the same probabilities.

A few held-out documents go through the model as it was trained (adapters not merged, weights in the dtype they have),
and through the exported folder as plain transformers loads it. Compared is the log-probability of each trained token:
the root of the mean squared difference, which no errors of opposite sign can hide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import IGNORE_INDEX, Manifest, read_rows, shard_files

if TYPE_CHECKING:
    import torch

    Document = tuple[list[int], list[int]]

MOST_TOKENS = 1024  # of all documents; a model of 8B needs a minute for them on a CPU
DOCUMENT_TOKENS = 256  # of one document, around its first trained token
ROWS_LOOKED_AT = 64
# Nats, by the coarsest dtype that one of the two models computes in; int8 stands for activations rounded to it too.
# Rounding changes a logit by its own size, some tens, times half a unit in the last place (2^-24, 2^-11, 2^-8), and by
# less in each layer. Measured, merged against not merged: 2e-6, 4.5e-3 and 3.7e-2 for a small trained model. The limits
# are four times that, and in float32 more, for depth. A wrong merge changes it by what the training did, mostly tenths.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1.5e-1, "int8": 2e-1}


@dataclass(frozen=True)
class HeldOut:
    """The documents that both models read."""

    documents: list[Document]  # ids and labels
    split: str  # of the shards


@dataclass(frozen=True)
class Proof:
    """What the two models make of the documents."""

    split: str
    documents: int
    tokens: int  # trained ones
    trained_loss: float  # mean negative log-likelihood in nats
    exported_loss: float
    difference: float  # root mean square over the tokens' log-probabilities, in nats
    tolerance: float
    dtype: str  # of the exported weights
    adapter_effect: float | None  # the same difference between the trained model and its base model

    def as_json(self) -> dict[str, Any]:
        """For export.json."""
        return {"run": True, **asdict(self)}

    @property
    def is_weak(self) -> bool:
        """Whether the adapter does so little that the export could be its base model all the same."""
        return self.adapter_effect is not None and self.adapter_effect <= 2 * self.tolerance

    def sentence(self) -> str:
        """For the user."""
        return (
            f"proof: {self.documents} documents of the {self.split} split, {self.tokens} trained tokens: loss "
            f"{self.trained_loss:.6f} as trained, {self.exported_loss:.6f} as exported; their log-probabilities differ "
            f"by {self.difference:.1e} (at most {self.tolerance:.1e} is rounding in {self.dtype})"
        )


def choose_documents(shards: str | Path, manifest: Manifest) -> HeldOut:
    """A few documents of the eval split, or of the train split where nothing is held out, one source after the other.

    Raises:
        ValueError: the shards cannot be read, or hold no trained token.
    """
    splits = manifest.get("splits") or {}
    split = next((name for name in ("eval", "train") if name in splits and splits[name]["rows"]), None)
    if split is None:
        raise ValueError(f"{shards} holds no documents")
    by_source: dict[int, list[Document]] = {}
    try:
        rows = (row for file in shard_files(shards, manifest, split) for row in read_rows(file))
        for source, document in _documents(islice(rows, ROWS_LOOKED_AT)):
            by_source.setdefault(source, []).append(document)
    except OSError as error:
        raise ValueError(f"the {split} split of {shards} cannot be read: {error}") from None
    chosen = list(_few(by_source))
    if not chosen:
        raise ValueError(f"no trained token is in the first {ROWS_LOOKED_AT} rows of the {split} split of {shards}")
    return HeldOut(chosen, split)


def log_probabilities(model: Any, held_out: HeldOut) -> torch.Tensor:
    """(trained tokens,) float64: what the model makes of each trained token, each document by itself.

    Raises:
        ValueError: the documents hold token ids that the model has no row for.
    """
    import torch

    found = []
    model.eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # 4-bit weights would be rounded to bf16 for the product
            module.support_avx512bf16_for_cpu = False
    largest, rows = max(max(ids) for ids, _ in held_out.documents), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise ValueError(f"the shards hold the token id {largest}, the model rows for {rows}: one is not of this run")
    for ids, labels in held_out.documents:
        inputs = torch.tensor([ids], device=next(model.parameters()).device)
        places = [i for i, label in enumerate(labels[1:]) if label != IGNORE_INDEX]
        with torch.no_grad():
            logits = model(input_ids=inputs, use_cache=False).logits[0, places].float()
        targets = torch.tensor(labels, device=logits.device)[1:][places]
        found.append(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu())
    return torch.cat(found)


class Prover:
    """Takes both models' log-probabilities, one model after the other, and compares them.

    Args:
        held_out: None: there are none, and nothing is proven.
    """

    def __init__(self, held_out: HeldOut | None):
        self.held_out = held_out
        self.dtypes: set[str] = set()
        self.trained: torch.Tensor | None = None
        self.exported: torch.Tensor | None = None
        self.without_adapter: torch.Tensor | None = None

    def read_trained(self, model: Any) -> None:
        """The model as it was trained; without its adapter too, where it has one."""
        if self.held_out is None:
            return
        self.trained = log_probabilities(model, self.held_out)
        self.dtypes.add(_computed_in(model))
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                self.without_adapter = log_probabilities(model, self.held_out)

    def read_exported(self, model: Any) -> None:
        """The export, as it was loaded."""
        if self.held_out is not None:
            self.exported = log_probabilities(model, self.held_out)
            self.dtypes.add(_computed_in(model))

    def proof(self, tolerance: float | None = None) -> Proof | None:
        """The proof; None where there are no documents.

        Args:
            tolerance: nats; None: the largest of TOLERANCES for the dtypes that the two models compute in.

        Raises:
            ValueError: the two models differ by more than rounding.
        """
        if self.held_out is None:
            return None
        assert self.trained is not None and self.exported is not None, "both models were read"
        limits = {dtype: TOLERANCES.get(dtype, TOLERANCES["bfloat16"]) for dtype in self.dtypes}
        coarsest = max(limits, key=lambda dtype: limits[dtype])
        proof = Proof(
            split=self.held_out.split,
            documents=len(self.held_out.documents),
            tokens=len(self.trained),
            trained_loss=-self.trained.mean().item(),
            exported_loss=-self.exported.mean().item(),
            difference=_distance(self.trained, self.exported),
            tolerance=limits[coarsest] if tolerance is None else tolerance,
            dtype=coarsest,
            adapter_effect=None if self.without_adapter is None else _distance(self.trained, self.without_adapter),
        )
        if not proof.difference <= proof.tolerance:  # NaN too
            raise ValueError(
                f"the export is not the model that was trained, and was not written. {proof.sentence()}. If this model "
                "rounds more than others, and both losses are as good, give a limit of your own with --tolerance"
            )
        return proof


def _computed_in(model: Any) -> str:
    """The dtype of a model's weights; int8 where activations are rounded to it too."""
    quantised = getattr(model.config, "quantization_config", None)
    if getattr(quantised, "load_in_8bit", False):
        return "int8"
    return str(model.dtype).removeprefix("torch.")


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return math.sqrt((one - other).square().mean().item())


def _documents(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[int, Document]]:
    """(source, document) for each document with a trained token; of a long one, what is around the first of them."""
    for row in rows:
        end = 0
        for length, source in zip(row["seq_lengths"].tolist(), row["sources"].tolist(), strict=True):
            start, end = end, end + length
            ids, labels = (row[name][start:end].tolist() for name in ("input_ids", "labels"))
            first = next((i for i, label in enumerate(labels[1:], 1) if label != IGNORE_INDEX), None)
            if first is not None:
                begin = max(0, min(first - DOCUMENT_TOKENS // 2, length - DOCUMENT_TOKENS))
                cut = slice(begin, begin + DOCUMENT_TOKENS)
                yield source, (ids[cut], labels[cut])


def _few(by_source: dict[int, list[Document]]) -> Iterator[Document]:
    """One of each source in turn, up to MOST_TOKENS; one document in any case."""
    left, given = MOST_TOKENS, False
    for turn in range(max(map(len, by_source.values()), default=0)):
        for documents in by_source.values():
            if turn < len(documents) and (len(documents[turn][0]) <= left or not given):
                left, given = left - len(documents[turn][0]), True
                yield documents[turn]
