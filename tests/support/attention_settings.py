"""What the choice of an attention implementation depends on, made up."""

from __future__ import annotations

import types

from transformers import LlamaConfig

from train.model.attention import Setting


def setting(**changes) -> Setting:
    """A Llama in bf16 on a Hopper GPU, but for the changes."""
    flags = ["_supports_flash_attn", "_supports_attention_backend", "_supports_sdpa", "_supports_flex_attn"]
    given = changes.pop("flags", {})
    model_class = types.SimpleNamespace(**{flag: given.get(flag, True) for flag in flags})
    model_class._compatible_flash_implementations = changes.pop("compatible", None)
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, **changes.pop("config", {}))
    full = {"use_cpu": False, "half": True, "batch_tokens": 8192, "capability": (9, 0)}
    return Setting(**{**full, "model_class": model_class, "config": config, **changes})
