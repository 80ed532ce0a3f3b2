"""Layers that carry a state, on fake tensors: each document by itself, as training runs them without kernels for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from transformers.integrations import hub_kernels

from train.memory.setting import Setting
from train.model import documentwise

# Recurrences are loops in Python over a document's tokens or chunks of tokens.
LONG = 1024  # tokens; longer documents are traced as pieces
PIECE = 256  # tokens of these
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
        mock.patch.object(documentwise, "_group", functools.partial(_sizes, _sees_pairs(model))),
        mock.patch.object(hub_kernels, "is_torchdynamo_exporting", lambda: True),
    ):
        yield


def _sizes(whole: bool, lengths: list[int], group: list[int]) -> documentwise.Group:
    """Long documents as many short ones of as many tokens, which takes a fraction of the time: what a recurrence holds
    is by token, or by chunk of tokens."""
    documents, longest = len(group), lengths[group[0]]
    if longest > LONG and not whole:
        chunks = documents * -(-longest // _CHUNK)
        documents, longest = -(-chunks * _CHUNK // PIECE), PIECE
    tokens = sum(lengths[i] for i in group)
    return documentwise.Group(*(torch.zeros(s, dtype=torch.long) for s in ((documents, longest), (tokens,), (tokens,))))


def _sees_pairs(model: Any) -> bool:
    """Whether a layer among them is attention, whose mask is a square of a document's tokens."""
    return any(documentwise._is_attention(layer) for layer in documentwise.mixers(model).values())
