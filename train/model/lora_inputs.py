"""Stops LoRA layers from copying their input to fp32 where autocast would cast the copy back.

An adapter's weights are fp32 in mixed precision, and peft casts the input to their dtype. Autocast multiplies in half
precision all the same, so the result is the same to the bit without the copies. In a layer of an 8B model they were a
quarter of the bytes that its forward pass moves.
"""

from __future__ import annotations

from typing import Any

import torch


def leave_as_they_are(model: Any, device: torch.device) -> None:
    """Turn peft's copies off in layers whose results do not change. For a model that is only called under autocast.

    Of peft's LoRA layers, `Linear` alone (GPT-2's Conv1D and torchao's included) copies in language models: embeddings
    and expert weights never do, quantised ones only without autocast. DoRA and the other variants compute with weights
    in fp32, and are left alone. So is dropout on a CPU, which would round its factor 1 / (1 - p) to the input's dtype;
    a GPU's kernel multiplies in fp32.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        plain = isinstance(module, Linear) and not module.lora_variant
        if plain and (device.type == "cuda" or not _drops(module)):
            module.cast_input_dtype_enabled = False


def _drops(layer: Any) -> bool:
    return any(not isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())
