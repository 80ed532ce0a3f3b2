"""A model's sizes layer by layer, as some (Gemma 4) have other ones in some layers."""

from __future__ import annotations

from typing import Any


def of_layers(config: Any, name: str) -> list[Any]:
    """The value of each layer; None where the configuration has no such value.

    transformers refuses to read one for all where they differ, with an error that is no AttributeError.
    """
    layers = getattr(config, "num_hidden_layers", 1)
    try:
        return [getattr(config, name, None)] * layers
    except RuntimeError:
        return [getattr(config.per_layer_config[i], name) for i in range(layers)]


def head_sizes(config: Any) -> list[int]:
    """Width of a query head, layer by layer; 0 for a model without attention."""
    given, heads = of_layers(config, "head_dim"), of_layers(config, "num_attention_heads")
    return [size or (config.hidden_size // number if number else 0) for size, number in zip(given, heads, strict=True)]
