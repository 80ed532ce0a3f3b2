"""Which attention implementation keeps packed documents apart, and works for this model, device and precision.

Flash attention and `varlen` are told where documents end (cu_seq_lens); flex, sdpa and eager get a block-diagonal mask,
which transformers makes from position_ids. `train.isolation` proves the choice on the real model before training. What
can be known without torch is checked by `problems_of_name` and `problems_of_layers`, in the preflight check.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Name -> (package, compute capabilities (major) that it is made for). Flash attention takes half precision only.
FLASH = {
    "flash_attention_3": ("flash-attn-3", (9,)),
    "flash_attention_4": ("flash-attn-4", (9, 10)),
    "flash_attention_2": ("flash-attn", (8, 9, 10, 12)),
}
VARLEN = "varlen"  # ours: torch's flash kernel on a GPU, one document at a time on a CPU
ISOLATING = (*FLASH, VARLEN, "flex_attention", "sdpa", "eager")
HUB_KERNELS = "kernels-community/"  # flash attention kernels from the hub
_PREFERRED = (*FLASH, VARLEN, "flex_attention", "sdpa", "eager")
_VARLEN_TORCH = (2, 10)
# The quadratic masks and scores are refused beyond this: such a run would spend its memory and time on them.
MASK_LIMIT_GIB = 8.0

_SAFE_LAYERS = ("full_attention", "attention", "sliding_attention", "moe", "mlp")
# Models with state-space, recurrent or convolution layers whose config.json need not say so.
_STATEFUL_MODELS = frozenset(
    {
        "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "glm5_next", "granitemoehybrid", "jamba",
        "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "minimax_m1", "nemotron_h",
        "olmo_hybrid", "plamo2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
        "qwen4_exp", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya1",
    }
)  # fmt: skip


def has_distribution(name: str) -> bool:
    """Whether a package is installed, by its name on the package index."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def problems_of_name(asked: str | None, use_cpu: bool, half: bool, batch_tokens: int | None) -> Iterator[str]:
    """What is wrong with an attention implementation asked for by name, as far as it shows without torch.

    Args:
        half: whether training runs in bf16 or fp16.
        batch_tokens: tokens of one forward pass: rows times seq_len; None if not known.
    """
    if asked in (None, "auto"):
        return
    if asked not in ISOLATING and not asked.startswith(HUB_KERNELS):
        yield f"{asked!r} is not known to keep packed documents apart; those that do: auto, {', '.join(ISOLATING)}"
    elif asked in FLASH or asked.startswith(HUB_KERNELS):
        yield from _problems_of_flash(asked, use_cpu, half)
    elif asked == VARLEN and not use_cpu:
        found = tuple(int(part) for part in importlib.metadata.version("torch").split(".")[:2])
        if found < _VARLEN_TORCH:
            yield f"varlen needs torch >= 2.10, found {found[0]}.{found[1]}: upgrade torch, or leave this out"
        if not half:
            yield "varlen on a GPU needs bf16 or fp16: set bf16: true, or leave this out"
    elif asked == "flex_attention" and use_cpu:
        yield "flex_attention has no backward pass on a CPU: leave this out"
    if asked == "sdpa" and batch_tokens and mask_gib(batch_tokens, 1) > MASK_LIMIT_GIB:
        yield _too_large(asked, mask_gib(batch_tokens, 1), batch_tokens)


def _problems_of_flash(asked: str, use_cpu: bool, half: bool) -> Iterator[str]:
    package = FLASH[asked][0] if asked in FLASH else "kernels"
    if use_cpu:
        yield f"{asked} needs a GPU, but use_cpu is true: leave this out"
    elif not has_distribution(package) and not has_distribution("kernels"):
        yield f"{asked} needs {package}, which is not installed: pip install {package} (see README), or leave this out"
    elif not half:
        yield f"{asked} needs bf16 or fp16: set bf16: true, or leave this out"


def problems_of_layers(settings: Mapping[str, Any]) -> Iterator[str]:
    """Layers that carry a state from token to token, or choose tokens by their place in the row.

    Args:
        settings: config.json of the model, or its text_config.
    """
    kind, unsafe = settings.get("model_type"), sorted(set(settings.get("layer_types") or ()) - set(_SAFE_LAYERS))
    if unsafe or kind in _STATEFUL_MODELS or settings.get("block_types"):
        what = ", ".join(unsafe) or "state-space, recurrent or convolution layers"
        yield (
            f"model_type {kind} has {what}: what such a layer carries over from one document of a packed row to the "
            "next is not cut by an attention mask; use a model of full or sliding-window attention layers"
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the choice depends on."""

    use_cpu: bool
    half: bool  # training runs in bf16 or fp16
    batch_tokens: int  # of one forward pass
    model_class: Any  # transformers' class, or None for a model with its own code
    config: Any  # of the language model
    capability: tuple[int, int] = (0, 0)  # compute capability of the GPU

    def supports(self, flag: str) -> bool:
        """A `_supports_...` flag of the model's class; a model with its own code is taken at its word."""
        return self.model_class is None or bool(getattr(self.model_class, flag, False))

    @property
    def head_dim(self) -> int:
        """Width of a query head."""
        heads = getattr(self.config, "num_attention_heads", 1)
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // heads


def choose(asked: str | None, setting: Setting) -> tuple[str, str]:
    """The attention implementation and why.

    Raises:
        ValueError: the one asked for does not work here.
    """
    if asked not in (None, "auto"):
        if reason := unsuited(asked, setting, asked=True):
            raise ValueError(f"attn_implementation {asked}: {reason}: write auto, or another of {', '.join(ISOLATING)}")
        return asked, f"asked for{_memory_note(asked, setting)}"
    reasons: list[str] = []
    for name in _PREFERRED:
        reason = unsuited(name, setting)
        if reason is None:
            passed_over = "; ".join(reasons) or "the first choice"
            return name, f"{_why(name, setting)}; passed over: {passed_over}{_memory_note(name, setting)}"
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"no attention implementation keeps packed documents apart here: {'; '.join(reasons)}")


def unsuited(name: str, setting: Setting, *, asked: bool = False) -> str | None:
    """Why an attention implementation cannot be used here; None if it can.

    Args:
        asked: by name; transformers then takes a kernel from the hub where the package is missing.
    """
    if name in FLASH or name.startswith(HUB_KERNELS):
        return _unsuited_flash(name, setting, asked)
    if name == VARLEN:
        return _unsuited_varlen(setting)
    if name == "flex_attention":
        if setting.use_cpu:
            return "no backward pass on a CPU"
        return None if setting.supports("_supports_flex_attn") else "the model does not support it"
    if name == "sdpa" and not setting.supports("_supports_sdpa"):
        return "the model does not support it"
    gib = mask_gib(setting.batch_tokens, _quadratic_bytes(name, setting))
    return _too_large(name, gib, setting.batch_tokens) if gib > MASK_LIMIT_GIB else None


def _unsuited_flash(name: str, setting: Setting, asked: bool) -> str | None:
    package, majors = FLASH.get(name, ("kernels", FLASH["flash_attention_2"][1]))
    if setting.use_cpu:
        return "needs a GPU"
    if not has_distribution(package) and not (asked and has_distribution("kernels")):
        return f"{package} is not installed"
    if setting.capability[0] not in majors:
        return f"not made for compute capability {'.'.join(map(str, setting.capability))}"
    if not setting.half:
        return "needs bf16 or fp16"
    if not setting.supports("_supports_flash_attn"):
        return "the model does not support it"
    compatible = getattr(setting.model_class, "_compatible_flash_implementations", None)
    if compatible is not None and name not in compatible:
        return f"the model only works with {', '.join(compatible)}"
    return f"head_dim {setting.head_dim} is over 256" if setting.head_dim > 256 else None


def _unsuited_varlen(setting: Setting) -> str | None:
    if not (setting.supports("_supports_attention_backend") and setting.supports("_supports_sdpa")):
        return "the model's attention has more than the kernel can do (such as soft-capped scores or sinks)"
    if setting.use_cpu:
        return None
    if setting.capability[0] < 8:
        return f"not made for compute capability {'.'.join(map(str, setting.capability))}"
    if not setting.half:
        return "needs bf16 or fp16"
    if lacks := _kernel_lacks():
        return f"the kernel of this torch takes no {', '.join(lacks)}: upgrade torch"
    if setting.head_dim > 256 or setting.head_dim % 8:
        return f"head_dim {setting.head_dim} is over 256 or not a multiple of 8"
    dropout = getattr(setting.config, "attention_dropout", 0.0)
    return f"no dropout of attention weights on a GPU, the model has {dropout}" if dropout else None


def _kernel_lacks() -> list[str]:
    """Arguments that `train.varlen` gives torch's kernel and this version of it does not take."""
    from torch.nn.attention.varlen import varlen_attn

    taken = inspect.signature(varlen_attn).parameters
    return [name for name in ("scale", "window_size", "enable_gqa") if name not in taken]


def _why(name: str, setting: Setting) -> str:
    if name == VARLEN:
        return "each document by itself, on the CPU" if setting.use_cpu else "torch's own flash kernel"
    return {"sdpa": "block-diagonal mask", "eager": "block-diagonal mask", "flex_attention": "block mask"}.get(
        name, f"{FLASH[name][0] if name in FLASH else name} is installed"
    )


def _quadratic_bytes(name: str, setting: Setting) -> int:
    """Bytes for each pair of tokens: sdpa's mask, as truth values and as numbers; eager's scores and weights."""
    width = 2 if setting.half else 4
    return 1 + width if name == "sdpa" else width + (4 + width) * getattr(setting.config, "num_attention_heads", 1)


def mask_gib(batch_tokens: int, bytes_per_pair: int) -> float:
    """Memory in GiB that grows with the square of a batch's tokens."""
    return batch_tokens**2 * bytes_per_pair / 2**30


def _memory_note(name: str, setting: Setting) -> str:
    if name not in ("sdpa", "eager"):
        return ""
    gib = mask_gib(setting.batch_tokens, _quadratic_bytes(name, setting))
    return f"; WARNING: needs {gib:.2g} GiB for {setting.batch_tokens:,} tokens a batch, and grows with their square"


def _too_large(name: str, gib: float, tokens: int) -> str:
    return (
        f"{name} would need {gib:.3g} GiB for {tokens:,} tokens a batch (limit {MASK_LIMIT_GIB:g} GiB); lower "
        "per_device_train_batch_size or seq_len, or train in bf16 on a GPU with varlen or flash attention"
    )
