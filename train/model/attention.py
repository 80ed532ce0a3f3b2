"""Which attention implementation keeps packed documents apart, and works for this model, device and precision.

Flash attention and `varlen` get the ends of documents (cu_seq_lens); flex, sdpa and eager get a block-diagonal mask,
which transformers makes from position_ids. `train.model.isolation` proves the choice on the real model before training.
What can be known without torch is checked by `problems_of_name` and `problems_of_layers`, in the preflight check.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from train.config.library_options import installed_version
from train.model import hub_kernels
from train.model.layer_values import head_sizes, of_layers

# Name -> (package, compute capabilities (major) that it is made for). Flash attention takes half precision only.
FLASH = {
    "flash_attention_3": ("flash-attn-3", (9,)),
    "flash_attention_4": ("flash-attn-4", (9, 10)),
    "flash_attention_2": ("flash-attn", (8, 9, 10, 12)),
}
VARLEN = "varlen"  # ours: torch's flash kernel on a GPU, one document at a time on a CPU
ISOLATING = (*FLASH, VARLEN, "flex_attention", "sdpa", "eager")
HUB_KERNELS = hub_kernels.HUB  # flash attention kernels from the hub, by name
# Computes attention sinks in its forward pass, but no gradient for them.
_SINKS_FORWARD_ONLY = f"{HUB_KERNELS}vllm-flash-attn3"
_PREFERRED = (*FLASH, VARLEN, "flex_attention", "sdpa", "eager")
_VARLEN_TORCH = (2, 11)  # the first whose kernel takes a scale and a window
# Larger quadratic masks and scores are refused: the run would spend its memory and time on them.
MASK_LIMIT_GIB = 8.0

# Layers that choose tokens by their place in the row, thousands apart: the proof's rows are too short for them.
_BY_PLACE = ("chunked_attention",)


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
        if (found := installed_version("torch")) < _VARLEN_TORCH:
            yield f"varlen needs torch >= 2.11, found {found[0]}.{found[1]}: upgrade torch, or leave this out"
        if not half:
            yield "varlen on a GPU needs bf16 or fp16: set bf16: true, or leave this out"
    elif asked == "flex_attention" and use_cpu:
        yield "flex_attention has no backward pass on a CPU: leave this out"
    if asked == "sdpa" and batch_tokens and mask_gib(batch_tokens, 1) > MASK_LIMIT_GIB:
        yield _too_large(asked, mask_gib(batch_tokens, 1), batch_tokens)


def _problems_of_flash(asked: str, use_cpu: bool, half: bool) -> Iterator[str]:
    if use_cpu:
        yield f"{asked} needs a GPU, but use_cpu is true: leave this out"
    elif reason := _flash_missing(asked):
        yield f"{asked}: {reason}; or leave this out"
    elif not half:
        yield f"{asked} needs bf16 or fp16: set bf16: true, or leave this out"


def _flash_missing(name: str) -> str | None:
    """Why neither the package nor a kernel from the hub is here; None if one is."""
    package = FLASH[name][0] if name in FLASH else None
    if package and has_distribution(package):
        return None
    reason = hub_kernels.missing(name)
    return f"{package} is not installed; {reason}" if reason and package else reason


def problems_of_layers(settings: Mapping[str, Any]) -> Iterator[str]:
    """Layers that choose tokens by their place in the row. Those that carry a state are for train.model.documentwise.

    Args:
        settings: config.json of the model, or its text_config.
    """
    unsafe = sorted(set(settings.get("layer_types") or ()) & set(_BY_PLACE))
    if unsafe:
        yield (
            f"model_type {settings.get('model_type')} has {', '.join(unsafe)}: its chunks begin at places in the row, "
            "not in the document, so a document would be cut by where it lies; use a model of full, sliding-window or "
            "stateful layers"
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
        """A `_supports_...` flag of the model's class; a model with its own code is assumed to have it."""
        return self.model_class is None or bool(getattr(self.model_class, flag, False))

    @property
    def has_sinks(self) -> bool:
        """Whether the model hands attention sinks to its attention. No flag of its class says so, its code does."""
        return "s_aux=" in self._source

    @property
    def calls_any_attention(self) -> bool:
        """Whether another function can take the place of the model's attention. Some models do not say so, though their
        code calls whichever is registered, with nothing that `varlen` does not know."""
        source = self._source
        if re.search(r"attention_mask\[:, 0|attention_mask\.dtype", source):
            return False  # it reads the mask itself, to choose tokens by
        if self.supports("_supports_attention_backend"):
            return True
        more = any(name in source for name in ("softcap", "position_bias="))
        return "ALL_ATTENTION_FUNCTIONS" in source and not more and not self.has_sinks

    @property
    def _source(self) -> str:
        """The code of the model's module; '' where it is not known."""
        module = sys.modules.get(getattr(self.model_class, "__module__", ""))
        return inspect.getsource(module) if module is not None else ""

    @property
    def head_dim(self) -> int:
        """Width of a query head, of the widest layer."""
        return max(head_sizes(self.config))


def choose(asked: str | None, setting: Setting) -> tuple[str, str]:
    """The attention implementation and why.

    Raises:
        ValueError: the one asked for does not work here.
    """
    if asked not in (None, "auto"):
        if reason := unsuited(asked, setting):
            raise ValueError(f"attn_implementation {asked}: {reason}: write auto, or another of {', '.join(ISOLATING)}")
        return asked, f"asked for{_kernel_note(asked)}{_memory_note(asked, setting)}"
    reasons: list[str] = []
    for name in _PREFERRED:
        reason = unsuited(name, setting)
        if reason is None:
            passed_over = "; ".join(reasons) or "the first choice"
            return name, f"{_why(name, setting)}; passed over: {passed_over}{_memory_note(name, setting)}"
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"no attention implementation keeps packed documents apart here: {'; '.join(reasons)}")


def unsuited(name: str, setting: Setting) -> str | None:
    """Why an attention implementation cannot be used here; None if it can. Loads a kernel from the hub that would."""
    if name in FLASH or name.startswith(HUB_KERNELS):
        return _unsuited_flash(name, setting)
    cap = getattr(setting.config, "attn_logit_softcapping", None)
    # Older transformers call such a model fit for sdpa, which drops the cap without a word.
    if cap and name in (VARLEN, "sdpa"):
        return f"the model caps its scores at {cap}, which {name} cannot do"
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


def _unsuited_flash(name: str, setting: Setting) -> str | None:
    _, majors = FLASH.get(name, ("", FLASH["flash_attention_2"][1]))
    if setting.use_cpu:
        return "needs a GPU"
    if setting.capability[0] not in majors:
        return f"not made for compute capability {'.'.join(map(str, setting.capability))}"
    if not setting.half:
        return "needs bf16 or fp16"
    if not setting.supports("_supports_flash_attn"):
        return "the model does not support it"
    if setting.has_sinks and _kernel_repository(name) == _SINKS_FORWARD_ONLY:
        return f"the kernel {_SINKS_FORWARD_ONLY} has no backward pass for attention sinks, which the model has"
    compatible = getattr(setting.model_class, "_compatible_flash_implementations", None)
    if compatible is not None and name not in compatible:
        return f"the model only works with {', '.join(compatible)}"
    if setting.head_dim > 256:
        return f"head_dim {setting.head_dim} is over 256"
    return _flash_missing(name) or (hub_kernels.unusable(name) if _from_hub(name) else None)


def _from_hub(name: str) -> bool:
    """Whether transformers takes a kernel from the hub for it: where the package is missing."""
    return name.startswith(HUB_KERNELS) or (name in FLASH and not has_distribution(FLASH[name][0]))


def _kernel_repository(name: str) -> str | None:
    """Which kernel from the hub is used for it; None if a package is."""
    kernel = hub_kernels.kernel_of(name) if _from_hub(name) else None
    return kernel.repository if kernel else None


def _unsuited_varlen(setting: Setting) -> str | None:
    if not (setting.supports("_supports_sdpa") and setting.calls_any_attention):
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
    """Arguments that `train.model.varlen` gives torch's kernel and this version of it does not take."""
    from torch.nn.attention.varlen import varlen_attn

    taken = inspect.signature(varlen_attn).parameters
    return [name for name in ("scale", "window_size") if name not in taken]


def _why(name: str, setting: Setting) -> str:
    if name == VARLEN:
        return "each document by itself, on the CPU" if setting.use_cpu else "torch's own flash kernel"
    return {"sdpa": "block-diagonal mask", "eager": "block-diagonal mask", "flex_attention": "block mask"}.get(
        name,
        hub_kernels.describe(name) if _from_hub(name) else f"{FLASH[name][0] if name in FLASH else name} is installed",
    )


def _kernel_note(name: str) -> str:
    return f": {hub_kernels.describe(name)}" if _from_hub(name) else ""


def _quadratic_bytes(name: str, setting: Setting) -> int:
    """Bytes for each pair of tokens: sdpa's mask, as truth values and as numbers; eager's scores and weights."""
    width = 2 if setting.half else 4
    heads = max(number or 1 for number in of_layers(setting.config, "num_attention_heads"))
    return 1 + width if name == "sdpa" else width + (4 + width) * heads


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
