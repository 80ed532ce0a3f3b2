"""A model without weights, and smaller ones with some of its layers: what they keep is counted instead of all of it.

Layers of one kind (class, parameters, type of attention) keep the same, so a model of 80 layers is known by models of
two and of three.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from train.model.documentwise import mixers


class NotTraced(ValueError):
    """Something about a model of which the memory cannot be counted; says what."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A whole model on the meta device."""

    model: Any
    stack: str  # name of the list of its layers
    kinds: tuple[int, ...]  # of each layer; those of one number are alike

    @cached_property
    def stateful(self) -> Counter[str]:
        """How many layers of each class carry a state from token to token."""
        return Counter(type(layer).__name__ for layer in mixers(self.model).values())

    @property
    def counts(self) -> Counter[int]:
        """Layers of each kind."""
        return Counter(self.kinds)

    def samples(self) -> list[list[int]]:
        """Layers of the smaller models: the first has every kind, each other one has one layer more of one kind.

        The first and the last layer are in all of them: there a backward pass begins and ends. The last of each kind
        is, too: one kind may need much more than the others while it is differentiated.
        """
        chosen = {0, *{kind: layer for layer, kind in enumerate(self.kinds)}.values()}
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
        _shorten(small.config.get_text_config(), layers)
        return small


def _shorten(config: Any, layers: Sequence[int]) -> None:
    """To these layers. Where types follow from other fields (Jamba, Mamba), each layer knows its own."""
    if types := getattr(config, "layer_types", None):
        with contextlib.suppress(AttributeError):  # a property
            config.layer_types = [types[layer] for layer in layers]
    config.num_hidden_layers = len(layers)


def build(config: Any, trust_remote_code: bool = False) -> Skeleton:
    """The model of this transformers config, without weights.

    Raises:
        NotTraced: no list of its layers is found.
    """
    from transformers import AutoModelForCausalLM

    from train.model.lora_targets import without_zero3

    with without_zero3(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    layers = model.config.get_text_config().num_hidden_layers
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers}
    if not lists:
        raise NotTraced(f"{type(model).__name__} has no list of its {layers} layers")
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
