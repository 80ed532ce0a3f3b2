"""Floating-point operations of a step, for the share of the device's peak that training uses (MFU).

Only what the mathematics needs is counted: no recomputed activations, no filler, no scores across documents.

    per token            6 x weights of the layers; 4 x those that are frozen (no gradient of the weight)
    per trained token    the same for the output head: the loss is computed on trained tokens only
    per attended pair    12 x heads x head size, in each attention layer (scores and their product with the values,
                         forward and twice in backward)

A document of n tokens has n (n + 1) / 2 pairs, or fewer under a sliding window; packed documents do not attend to each
other. In a mixture of experts, only the share of experts that a token takes counts. Linear attention counts by weights.
The peaks are those of TRL's table (`trl.trainer.utils.get_peak_flops`: dense, by device name and dtype).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train.model.layer_values import head_sizes, of_layers

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """Floating-point operations of training, forward and backward."""

    per_token: int
    per_trained_token: int
    per_pair: dict[int | None, int]  # of all layers with this sliding window; None: full attention


def model_flops(model: Any) -> ModelFlops:
    """Count a model's weights as they are: quantised, partitioned by ZeRO-3, with adapters or without."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    skipped = {id(part) for part in [*head.modules(), *model.get_input_embeddings().modules()]}
    per_token = sum(
        _training_factor(weight) * int(size * _active_share(name, config))
        for name, weight, size in _matrices(model, skipped)
    )
    head_size = config.hidden_size * config.vocab_size
    return ModelFlops(
        per_token=per_token,
        per_trained_token=_training_factor(head.weight) * head_size,
        per_pair=_per_pair(config),
    )


def _matrices(model: Any, skipped: set[int]) -> Iterator[tuple[str, torch.Tensor, int]]:
    """(name, weight, elements) of every matrix but the embeddings and the head. A quantised weight is packed, and one
    that ZeRO-3 partitions is empty: a linear layer still knows its sizes."""
    for module_name, module in model.named_modules():
        if id(module) in skipped:
            continue
        for name, weight in module.named_parameters(recurse=False):
            if name == "weight" and hasattr(module, "in_features"):
                yield f"{module_name}.{name}", weight, module.in_features * module.out_features
            elif len(getattr(weight, "ds_shape", weight.shape)) > 1:
                yield f"{module_name}.{name}", weight, getattr(weight, "ds_numel", weight.numel())


def _training_factor(weight: torch.Tensor) -> int:
    return 6 if weight.requires_grad else 4


def _active_share(name: str, config: Any) -> float:
    if "experts" not in name.split("."):
        return 1.0
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    return config.num_experts_per_tok / experts


def _per_pair(config: Any) -> dict[int | None, int]:
    heads, sizes = of_layers(config, "num_attention_heads"), head_sizes(config)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types is None:
        types = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    flops: Counter[int | None] = Counter()
    for kind, number, size in zip(types, heads, sizes, strict=True):
        if kind.endswith("attention") and kind != "linear_attention" and number:
            flops[window if kind == "sliding_attention" else None] += 12 * number * size
    return dict(flops)


def attended_pairs(lengths: torch.Tensor, window: int | None) -> torch.Tensor:
    """Pairs of a token and one that it attends to, itself included, within documents of these lengths.

    Args:
        lengths: (documents,) integers.
        window: most tokens that a token attends to; None: all before it.

    Returns:
        A float64 scalar, on the lengths' device.
    """
    n = lengths.double()
    if window is None:
        return (n * (n + 1) / 2).sum()
    inside = n.clamp(max=window)
    return (inside * (inside + 1) / 2 + (n - inside) * window).sum()


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The device's dense peak in operations a second; None where it is not known, such as on CPUs.

    Args:
        dtype: what matrices are multiplied in, such as "bfloat16".
    """
    if device.type != "cuda":
        return None
    import torch
    from trl.trainer.utils import get_peak_flops

    return get_peak_flops(torch.cuda.get_device_name(device), dtype)


def multiplied_in(args: TrainingArguments, model: Any) -> str:
    """The dtype that matrices are multiplied in, such as "bfloat16"."""
    mixed = {"bf16": args.bf16, "fp16": args.fp16}
    names = {"bf16": "bfloat16", "fp16": "float16"}
    return next((names[name] for name, on in mixed.items() if on), str(model.dtype).removeprefix("torch."))
