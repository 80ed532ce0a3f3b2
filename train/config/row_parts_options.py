"""Options that cannot be right where rows are cut into parts (`sequence_parallel` above 1), each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def refused_with_parts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, why) among the options given."""
    ranks = values.get("sequence_parallel", 1)
    if not isinstance(ranks, int) or ranks < 2:
        return
    attention = values.get("attn_implementation")
    if attention not in (None, "auto", "varlen"):
        yield "attn_implementation", f"{attention!r} with sequence_parallel: only varlen exchanges parts: leave it out"
    if values.get("label_smoothing_factor"):
        yield (
            "label_smoothing_factor",
            "with sequence_parallel: TRL's own loss shifts labels within a part: leave it out",
        )
    for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        if values.get(name):
            yield name, "with sequence_parallel: compiled layers are not proven to exchange parts: leave it out"
