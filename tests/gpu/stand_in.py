"""torch's varlen kernel on a CPU: a reference that checks what the kernel would, to rehearse GPU code without a GPU.

    python -m tests.gpu.stand_in MODULE [ARGUMENT...]     # `python -m MODULE`, with the kernel replaced

It replaces the two operators below `torch.nn.attention.varlen.varlen_attn`, so torch's own wrapper, its autograd and
its arguments are those of the installed version. PACKHAUL_REHEARSAL=1 asks for it in tests/gpu and in their processes.
"""

from __future__ import annotations

import math
import os
import runpy
import sys
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention import varlen as torch_varlen

from train.model import varlen

CALLS: list[str] = []  # "forward" or "backward", for each call of the kernel in this process
_HALF = (torch.bfloat16, torch.float16)


def rehearsing() -> bool:
    """Whether this process takes the stand-in for a GPU."""
    return os.environ.get("PACKHAUL_REHEARSAL") == "1"


def install() -> None:
    """Make `attn_implementation: varlen` take the GPU's way on a CPU, in half precision."""
    if varlen._has_kernel is _has_kernel:
        return
    torch_varlen._varlen_attn.register_kernel("cpu")(_forward)
    torch_varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
    varlen._has_kernel = _has_kernel


def _has_kernel(query: torch.Tensor) -> bool:
    """In half precision, or where autocast makes it so. A model in fp32 stays the reference."""
    return query.dtype in _HALF or (query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"))


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *more: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    CALLS.append("forward")
    outs = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = _one_document(query, key, value, start, end)
        weights = _weights(q, k, scale, window_size, is_causal)
        outs.append((weights @ v).transpose(0, 1))
    lse = torch.zeros(query.shape[1], query.shape[0])
    return torch.cat(outs).to(query.dtype), lse, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: torch.Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *more: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    assert grad_out.dtype == query.dtype and grad_out.stride(-1) == 1, (grad_out.dtype, grad_out.stride())
    CALLS.append("backward")
    grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = _one_document(query, key, value, start, end)
        grad = grad_out[start:end].float().transpose(0, 1)
        weights = _weights(q, k, scale, window_size, is_causal)
        of_weights = grad @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * _scale(q, scale)
        found = of_scores @ k, of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ grad
        for target, part in zip(grads, found, strict=True):
            grouped = part.view(target.shape[1], -1, *part.shape[1:]).sum(1)  # heads that share keys and values
            target[start:end] = grouped.transpose(0, 1)
    return grads[0], grads[1], grads[2]


def _check(query: Any, key: Any, value: Any, ends_q: Any, ends_k: Any, max_q: int, max_k: int) -> None:
    """What the kernel demands of its arguments (torch's flash_api.cpp): it raises, or reads elsewhere."""
    tensors = (query, key, value)
    assert query.dtype in _HALF and len({t.dtype for t in tensors}) == 1, [t.dtype for t in tensors]
    assert all(t.dim() == 3 and t.stride(-1) == 1 for t in tensors), [(t.shape, t.stride()) for t in tensors]
    assert key.shape == value.shape and query.shape[1] % key.shape[1] == 0, [t.shape for t in tensors]
    assert query.shape[2] == key.shape[2] and query.shape[2] % 8 == 0 and query.shape[2] <= 256, query.shape
    for ends, longest, tokens in ((ends_q, max_q, len(query)), (ends_k, max_k, len(key))):
        assert ends.dtype == torch.int32 and ends.is_contiguous() and ends.device == query.device, ends
        assert type(longest) is int and longest == int(ends.diff().max()), (longest, ends)
        assert int(ends[0]) == 0 and int(ends[-1]) == tokens and int(ends.diff().min()) > 0, (ends, tokens)


def _one_document(query: Any, key: Any, value: Any, start: int, end: int) -> list[torch.Tensor]:
    """Queries, keys and values of it, fp32, (query heads, tokens, head_dim)."""
    group = query.shape[1] // key.shape[1]
    q, k, v = (tensor[start:end].float().transpose(0, 1) for tensor in (query, key, value))
    return [q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)]


def _scale(q: torch.Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _weights(
    q: torch.Tensor, k: torch.Tensor, scale: float | None, window_size: list[int] | None, is_causal: bool
) -> torch.Tensor:
    """(heads, tokens, tokens): softmax of the scores within the window."""
    left, right = window_size or (-1, -1)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])[None]
    allowed = distance >= 0 if is_causal or right == 0 else torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        allowed = allowed & (distance <= left)
    scores = q @ k.transpose(1, 2) * _scale(q, scale)
    return scores.masked_fill(~allowed, -math.inf).softmax(-1)


def main() -> None:
    """Run a module with the kernel replaced. It must call the kernel: a rehearsal that passes it by shows nothing."""
    install()
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    if "backward" not in CALLS:
        raise RuntimeError(f"{sys.argv[0]}: the varlen kernel was not trained with, calls: {CALLS[:3]}")


if __name__ == "__main__":
    # Under its own name: what the module imports of this file must be this file's state.
    from tests.gpu import stand_in

    stand_in.main()
