"""A model and its batch as training has them, on fake tensors: dtypes, adapters, attention, loss head."""

from __future__ import annotations

import contextlib
import copy
import warnings
from itertools import accumulate, pairwise
from typing import Any

import torch

from train.memory import as_on_gpu, stateful
from train.memory.quantised import quantise
from train.memory.setting import Setting

_LINEAR = ("varlen", "flex_attention")  # attention that keeps what flash attention keeps; those named flash do too
_OFFLOADED = 1024  # bytes from which on TRL's OffloadActivations takes a tensor away


def prepared(model: Any, setting: Setting) -> Any:
    """In the dtypes, with the adapters and the loss head that training gives it."""
    from trl.trainer.utils import add_fused_lm_head

    dtype = getattr(torch, setting.model_dtype)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config._attn_implementation = _attention(setting)
    if setting.bits:
        quantise(model, setting.bits, setting.nested)
    whole = _adapted(model, setting) if setting.adapters else model
    if setting.checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of the name that older versions have
            whole.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    causal = whole.get_base_model() if setting.adapters else whole
    stateful.install(whole, setting)
    add_fused_lm_head(causal, outputs=("log_probs", "is_top1"))
    return whole.train()


def _adapted(model: Any, setting: Setting) -> Any:
    """With adapters, in the dtype that TRL, DeepSpeed or FSDP2 gives them."""
    from peft import get_peft_model

    assert setting.adapters is not None

    from train.model import lora_inputs

    with warnings.catch_warnings(action="ignore"):
        whole = get_peft_model(model, copy.deepcopy(setting.adapters))  # it writes the names of layers into it
    if setting.checkpointing:
        whole.enable_input_require_grads()
    dtype = torch.float32 if setting.sharding.kind in ("none", "ddp") else getattr(torch, setting.model_dtype)
    dtype = torch.bfloat16 if setting.bits else dtype
    for weight in whole.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
    if setting.autocast:
        lora_inputs.leave_as_they_are(whole, torch.device("cuda" if setting.on_gpu else "cpu"))
    return whole


def _attention(setting: Setting) -> str:
    """The implementation that is run in the place of the one chosen."""
    name = setting.attention
    if not setting.on_gpu:
        if name == "varlen":
            from train.model.varlen import register

            register()
        return name
    if _is_flash(name):
        as_on_gpu.register()
        return as_on_gpu.FLASH
    return name


def is_linear(setting: Setting) -> bool:
    """Whether what passes hold is on a line in the tokens: no mask or score for each pair of them."""
    return setting.on_gpu and _is_flash(setting.attention)


def _is_flash(name: str) -> bool:
    return name in _LINEAR or "flash" in name


def give_storages(model: Any) -> None:
    """From the meta device to fake tensors of the CPU, shared where they were."""
    made: dict[int, Any] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device="cpu")
            is_weight = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        found: torch.Tensor = made[id(tensor)]
        return found

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


def batch(setting: Setting) -> dict[str, Any]:
    """What the collator makes of packed rows, each token trained."""
    shape = (1, setting.tokens)
    given: dict[str, Any] = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "labels")}
    given |= {"position_ids": torch.zeros(shape, dtype=torch.long), "use_cache": False}
    lengths = document_lengths(setting)
    ends = [0, *accumulate(lengths)]
    for side in "qk":
        given[f"cu_seq_lens_{side}"] = torch.zeros(len(ends), dtype=torch.int32) if setting.on_gpu else _Ends(ends)
        given[f"max_length_{side}"] = max(lengths)
    return given


def document_lengths(setting: Setting) -> list[int]:
    """Tokens of each document of a forward pass: the mean length, rounded."""
    ends = [round(setting.tokens * i / setting.documents) for i in range(setting.documents + 1)]
    return [b - a for a, b in pairwise(ends)]


class _Ends(list[int]):
    """Ends of documents, for attention that takes one document after the other: fake tensors have no numbers."""

    def tolist(self) -> list[int]:
        """As that of a tensor."""
        return list(self)


def offloading(model: Any, setting: Setting) -> contextlib.AbstractContextManager[Any]:
    """What autograd saves goes to the CPU's memory until it is needed (`trl.models.OffloadActivations`)."""
    if not setting.activation_offloading:
        return contextlib.nullcontext()
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}

    def pack(tensor: torch.Tensor) -> Any:
        small = tensor.untyped_storage().nbytes() < _OFFLOADED
        if small or tensor.untyped_storage()._cdata in weights:
            return tensor
        return tuple(tensor.shape), tensor.stride(), tensor.dtype

    def unpack(saved: Any) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        shape, stride, dtype = saved
        return torch.empty_strided(shape, stride, dtype=dtype)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
