"""Names of layers and parameters, as peft's settings take them."""

from __future__ import annotations

from collections.abc import Iterable

ALL_LINEAR = "all-linear"


def is_found(target: str, names: Iterable[str]) -> bool:
    """As peft matches: the whole name, or its end from a dot on."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def as_parameters(names: Iterable[str]) -> list[str]:
    """What `lora_target_parameters` takes for these parameters of all layers: such as mlp.experts.down_proj."""
    return sorted({".".join(name.split(".")[-3:]) for name in names})


def written(option: str, names: Iterable[str]) -> str:
    """A line of a run config."""
    return f"{option}: [{', '.join(sorted(names))}]"
