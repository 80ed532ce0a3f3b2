"""Layers that carry a state, on fake tensors: each document by itself, as training runs them without kernels for it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from transformers.integrations import hub_kernels

from train.memory.setting import Setting
from train.model import documentwise

# Recurrences are loops in Python over a document's tokens or chunks of tokens.
LONG = 1024  # tokens; longer documents are traced as pieces
PIECE = 256  # tokens of these
# Of a loop over single tokens: 10 to 20 operations a token and layer, so that documents of 256 took minutes. Of Mamba a
# convolution adds three tokens to each piece: 0.4 % more in all.
SHORT_PIECE = 64
_CHUNK = 64  # tokens that the gated delta rules of transformers pad documents to


def install(model: Any, setting: Setting) -> None:
    """As training does (`train.loop.setup`), on the model that the trainer has."""
    documentwise.install(model)
    if setting.sharding.stage == 3:
        documentwise.fix_calls(model)


@contextlib.contextmanager
def traceable(model: Any) -> Iterator[None]:
    """Groups of documents have sizes without contents, and layers compute as they do where no kernels are installed.

    transformers takes installed kernels even on a CPU; what it exports to other programs it computes without them.
    """
    with (
        mock.patch.object(documentwise, "_group", functools.partial(_sizes, _pieces(model))),
        mock.patch.object(hub_kernels, "is_torchdynamo_exporting", lambda: True),
    ):
        yield


@dataclass(frozen=True)
class _Pieces:
    """Documents of more than `above` tokens are traced as pieces of `tokens`."""

    above: float
    tokens: int


def _pieces(model: Any) -> _Pieces:
    """How documents are cut for the layers that a model has."""
    layers = documentwise.mixers(model).values()
    if any(documentwise._is_attention(layer) for layer in layers):  # its mask is a square of a document's tokens
        return _Pieces(math.inf, PIECE)
    if all(_loops_over_tokens(layer) for layer in layers):
        return _Pieces(SHORT_PIECE, SHORT_PIECE)
    return _Pieces(LONG, PIECE)


def _loops_over_tokens(layer: Any) -> bool:
    """RWKV's layers, and the selective scan of the first Mamba."""
    is_scan = hasattr(layer, "A_log") and hasattr(layer, "x_proj")
    return is_scan or hasattr(layer, "time_decay") or hasattr(layer, "time_mix_key")


def _sizes(pieces: _Pieces, lengths: list[int], group: list[int]) -> documentwise.Group:
    """Long documents as many short ones of as many tokens, which takes a fraction of the time: what a recurrence holds
    is by token, or by chunk of tokens."""
    documents, longest = len(group), lengths[group[0]]
    if longest > pieces.above:
        chunks = documents * -(-longest // _CHUNK)
        documents, longest = -(-chunks * _CHUNK // pieces.tokens), pieces.tokens
    tokens = sum(lengths[i] for i in group)
    return documentwise.Group(*(torch.zeros(s, dtype=torch.long) for s in ((documents, longest), (tokens,), (tokens,))))
