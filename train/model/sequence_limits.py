"""Which models can be trained on rows cut into parts, as far as config.json tells: no torch.

What it does not tell is found when the model is there: by its layers (train.model.documentwise), by each call of its
attention, and by the start-up proof, whose packed documents are cut as in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
# Settings of layers that carry a state, in models that do not list the types of their layers.
_STATE_SETTINGS = ("mamba_", "ssm_", "state_size", "lru_width", "linear_attn", "hybrid_override", "conv_kernel")
# Rotary embeddings that take their frequencies from the largest position they see, which differs between parts.
_ROPES_BY_LENGTH = ("dynamic", "longrope", "su")
_MOST_RANKS = 64


def problems_of_parts(settings: Mapping[str, Any], ranks: int) -> Iterator[str]:
    """Why a model cannot be trained on rows that `ranks` ranks hold in parts.

    Args:
        settings: config.json of the language model.
    """
    if ranks == 1:
        return
    yield from _problems_of_heads(settings, ranks)
    if others := _other_layers(settings):
        yield (
            f"sequence_parallel: model_type {settings.get('model_type')} has {', '.join(others)}: such layers need a "
            "whole row, and only attention exchanges its parts: leave it out"
        )
    if ropes := sorted({kind for kind in _rope_types(settings) if kind.startswith(_ROPES_BY_LENGTH)}):
        yield (
            f"sequence_parallel: rope {', '.join(ropes)} takes its frequencies from the largest position, which "
            "differs between the parts of a row: leave it out"
        )
    if settings.get("attn_logit_softcapping"):
        yield "sequence_parallel: the model caps its scores, which varlen attention cannot do: leave it out"


def heads_of(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Heads of the queries, and of keys and values; None where config.json has no one number for all layers."""
    heads = settings.get("num_attention_heads")
    kv_heads = settings.get("num_key_value_heads") or settings.get("num_kv_heads") or heads
    return (heads, kv_heads) if isinstance(heads, int) and isinstance(kv_heads, int) else None


def _problems_of_heads(settings: Mapping[str, Any], ranks: int) -> Iterator[str]:
    found = heads_of(settings)
    if found is None or _shareable(*found, ranks):
        return
    heads, kv_heads = found
    possible = [n for n in range(2, _MOST_RANKS + 1) if _shareable(heads, kv_heads, n)]
    yield (
        f"sequence_parallel: expected a number of ranks that can share {heads} heads with {kv_heads} of keys and "
        f"values (one of {possible}), found {ranks}"
    )


def _shareable(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether ranks get equally many heads, those of keys and values repeated until each rank has as many."""
    return heads % math.lcm(kv_heads, ranks) == 0


def _other_layers(settings: Mapping[str, Any]) -> list[str]:
    if types := settings.get("layer_types"):
        return sorted(set(types) - _ATTENTION_LAYERS)
    return sorted(name for name, value in settings.items() if name.startswith(_STATE_SETTINGS) and value)


def _rope_types(settings: Mapping[str, Any]) -> Iterator[str]:
    """Of all layers: some models have one for each type of layer."""
    for key in ("rope_parameters", "rope_scaling"):
        given = settings.get(key) or {}
        for one in (given, *(value for value in given.values() if isinstance(value, Mapping))):
            yield str(one.get("rope_type") or one.get("type") or "default")
