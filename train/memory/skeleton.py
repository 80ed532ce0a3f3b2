"""A model without weights, and smaller ones with some of its layers: what they keep is counted instead of all of it.

Layers of one kind (class, parameters, type of attention) keep the same, so a model of 80 layers is known by models of
two and of three.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


class NotTraced(ValueError):
    """Something about a model of which the memory cannot be counted; says what."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A whole model on the meta device."""

    model: Any
    stack: str  # name of the list of its layers
    kinds: tuple[int, ...]  # of each layer; those of one number are alike

    @property
    def counts(self) -> Counter[int]:
        """Layers of each kind."""
        return Counter(self.kinds)

    def samples(self) -> list[list[int]]:
        """Layers of the smaller models: the first has every kind, each other one has one layer more of one kind.

        The first and the last layer are in all of them: there a backward pass begins and ends.
        """
        chosen = {0, len(self.kinds) - 1}
        for kind in self.counts:
            of_kind = {layer for layer, other in enumerate(self.kinds) if other == kind}
            missing = max(0, 2 - len(chosen & of_kind))
            chosen |= set(sorted(of_kind - chosen)[:missing])
        further = {self.kinds[layer]: layer for layer in range(len(self.kinds) - 1, -1, -1) if layer not in chosen}
        return [sorted(chosen), *(sorted({*chosen, layer}) for _, layer in sorted(further.items()))]

    def with_layers(self, layers: Sequence[int]) -> Any:
        """A copy of the model with these layers alone."""
        whole = self.model.get_submodule(self.stack)
        _set(self.model, self.stack, torch.nn.ModuleList(whole[layer] for layer in layers))
        try:
            small = copy.deepcopy(self.model)
        finally:
            _set(self.model, self.stack, whole)
        text = small.config.get_text_config()
        if types := getattr(text, "layer_types", None):
            text.layer_types = [types[layer] for layer in layers]
        text.num_hidden_layers = len(layers)
        return small


def build(config: Any, trust_remote_code: bool = False) -> Skeleton:
    """The model of this transformers config, without weights.

    Raises:
        NotTraced: no list of its layers is found, or they carry a state.
    """
    from transformers import AutoModelForCausalLM

    from train.model.documentwise import mixers
    from train.model.lora_targets import without_zero3

    with without_zero3(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    layers = model.config.get_text_config().num_hidden_layers
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers}
    if not lists:
        raise NotTraced(f"{type(model).__name__} has no list of its {layers} layers")
    if stateful := sorted({type(layer).__name__ for layer in mixers(model).values()}):
        raise NotTraced(f"its layers of class {', '.join(stateful)} carry a state, and take each document by itself")
    stack = min(lists, key=len)
    return Skeleton(model=model, stack=stack, kinds=_kinds(lists[stack], model.config.get_text_config()))


def _kinds(layers: Any, config: Any) -> tuple[int, ...]:
    types = getattr(config, "layer_types", None) or [None] * len(layers)
    signatures = [
        (type(layer), kind, tuple((name, tuple(p.shape)) for name, p in layer.named_parameters()))
        for layer, kind in zip(layers, types, strict=True)
    ]
    numbers = {signature: number for number, signature in enumerate(dict.fromkeys(signatures))}
    return tuple(numbers[signature] for signature in signatures)


def _set(model: Any, name: str, value: Any) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, value)
