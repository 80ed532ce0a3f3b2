"""Lets fake tensors on the CPU take the memory that a GPU's kernels take.

torch without CUDA cannot differentiate fake tensors of a GPU, and a login node has such a torch. Where the operations
differ, those of the GPU are put in their place: flash attention, TRL's kernels of the loss head, and what CUDA's
autocast computes in fp32 (torch.amp, "CUDA Ops that can autocast to float32").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.overrides import TorchFunctionMode

FLASH = "memory_flash"  # name that the attention is registered by

_IN_FP32 = {
    *(torch.nn.functional.layer_norm, torch.nn.functional.softmax, torch.nn.functional.log_softmax),
    *(torch.softmax, torch.log_softmax, torch.Tensor.softmax, torch.Tensor.log_softmax),
    *(torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.rsqrt, torch.Tensor.rsqrt),
    *(torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.norm, torch.Tensor.norm),
    *(torch.sum, torch.Tensor.sum, torch.cumsum, torch.Tensor.cumsum, torch.prod, torch.Tensor.prod),
}


def register() -> None:
    """Make the attention known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(FLASH, _flash)
    AttentionMaskInterface.register(FLASH, lambda *args, **kwargs: None)


def _flash(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Keeps query, key, value, output and a number for each head and token, as every flash kernel does.

    Args:
        query: (1, heads, tokens, head_dim); `key` and `value` may have fewer heads.
    """
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    width = value.shape[-1]
    if width != query.shape[-1]:
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    q, k, v = (tensor[0].transpose(0, 1).to(half) for tensor in (query, key, value))
    ends, tokens = torch.zeros(2, dtype=torch.int32), query.shape[2]
    grouped: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    out: Any = varlen_attn(q, k, v, ends, ends, tokens, tokens, **grouped)
    return out[None, :, :, :width], None


class _Fp32Operations(TorchFunctionMode):
    """Casts halves to fp32 where CUDA's autocast does and the CPU's does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_widened(value) for value in args)
        return func(*args, **(kwargs or {}))


def _widened(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value


@contextlib.contextmanager
def gpu_kernels() -> Iterator[None]:
    """TRL's loss head as its Triton kernels compute it: within a tile, and with products added in fp32."""
    from trl.kernels import chunked_logprob

    from train.model import kept_logits

    def nothing(*args: Any, **kwargs: Any) -> None:
        """A kernel that works within its arguments."""

    def product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """In fp32, then cast: without copies of what is multiplied."""
        return left.new_empty((left.shape[0], right.shape[1]), dtype=torch.float32).to(dtype)

    with (
        mock.patch.object(kept_logits, "_product", product),
        mock.patch.object(chunked_logprob, "_forward_tile", nothing),
        mock.patch.object(chunked_logprob, "_backward_tile", nothing),
        mock.patch.object(chunked_logprob, "_addmm_fp32", nothing),
        _Fp32Operations(),
    ):
        yield
