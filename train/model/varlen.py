"""Attention over packed documents by torch alone: `attn_implementation: varlen`.

On a GPU it calls `torch.nn.attention.varlen.varlen_attn`, the flash kernel that torch brings (2.11 and later): linear
memory, no mask, no other package. On a CPU each document is attended to by itself, which is the definition of what the
kernel computes, and linear in the row's length as well.

Registered with transformers' interfaces, so that any model written for them can use it. Without packed documents, as in
generation, it is torch's scaled dot product attention with transformers' masks.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from train.model.sequence_parallel import exchanging

NAME = "varlen"
# From torch 2.12 on the kernel needs a flag where heads share keys and values; 2.11's sees it in the shapes. Looked up
# once, here: a compiled layer cannot read signatures.
_TAKES_ENABLE_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


def register() -> None:
    """Make `attn_implementation: varlen` known to transformers."""
    AttentionInterface.register(NAME, varlen_forward)
    AttentionMaskInterface.register(NAME, varlen_mask)


def varlen_mask(
    batch_size: int, q_length: int, kv_length: int, *, attention_mask: Any = None, **kwargs: Any
) -> torch.Tensor | None:
    """None for rows of whole documents, whose ends come as cu_seq_lens; sdpa's mask for padding or a cache.

    Called by transformers' masking_utils, which hands over the rest of what `sdpa_mask` takes.
    """
    if attention_mask is None and q_length == kv_length:
        return None
    kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(batch_size, q_length, kv_length, attention_mask=attention_mask, **kwargs)


@exchanging
def varlen_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        query: (batch, heads, tokens, head_dim); `key` and `value` may have fewer heads, each shared by a group.
        attention_mask: what `varlen_mask` made.
        dropout: of the attention weights; on a GPU only 0.
        scaling: of the scores; None: head_dim ** -0.5.
        sliding_window: tokens that a token attends to, itself included; None: all before it.
        cu_seq_lens_q: (documents + 1,) int32, where each document of the one row begins, and the end of the last.
        max_length_q: tokens of the longest document.
        position_ids: (1, tokens), from which the documents are found if cu_seq_lens_q is not given.

    Returns:
        (batch, tokens, heads, head_dim), and None for the weights.

    Raises:
        ValueError: soft-capped scores, attention sinks, non-causal attention, or dropout on a GPU.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    on_kernel = _has_kernel(query)
    _check_supported(module, dropout, on_kernel, kwargs)
    if cu_seq_lens_q is None:
        cu_seq_lens_q, max_length_q = _document_ends(position_ids, query)
    if query.shape[0] != 1 and len(cu_seq_lens_q) > 2:
        raise ValueError(f"varlen: expected one row of packed documents, found a batch of {query.shape[0]}")
    left = -1 if sliding_window is None or sliding_window >= (max_length_q or query.shape[2]) else sliding_window - 1
    if on_kernel and query.shape[0] == 1:
        out = _on_gpu(module, query, key, value, cu_seq_lens_q, int(max_length_q or query.shape[2]), scaling, left)
    else:
        out = _one_by_one(query, key, value, cu_seq_lens_q.tolist(), dropout, scaling, left)
    return out, None


def _has_kernel(query: torch.Tensor) -> bool:
    """Whether torch's kernel computes these: on a GPU. The only place that decides it."""
    return query.is_cuda


def _check_supported(module: torch.nn.Module, dropout: float, on_gpu: bool, kwargs: dict[str, Any]) -> None:
    found = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    causal = kwargs.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if causal is False:
        found.append("non-causal attention")
    if dropout and on_gpu:
        found.append(f"attention dropout {dropout} on a GPU")
    if found:
        raise ValueError(f"varlen attention has no {', '.join(found)}: choose another attn_implementation")


def _document_ends(position_ids: torch.Tensor | None, query: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Document starts and the end, from the positions, which start again with each document; else one document."""
    tokens = query.shape[2]
    starts = torch.zeros(1, dtype=torch.int32, device=query.device)
    if position_ids is not None and position_ids.shape == (1, tokens):
        starts = (position_ids[0] == position_ids.min()).nonzero().flatten().to(torch.int32)
    ends = torch.cat([starts, starts.new_tensor([tokens])])
    return ends, int(ends.diff().max())


def _on_gpu(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
    left: int,
) -> torch.Tensor:
    # As for flash attention in transformers: norms in fp32 leave fp32 queries, which the kernel does not take.
    dtype = get_target_dtype(query, module) or query.dtype
    width = value.shape[-1]
    if width != query.shape[-1]:  # values narrower than keys, as in multi-head latent attention
        value = F.pad(value, (0, query.shape[-1] - width))
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped: dict[str, Any] = {"enable_gqa": True} if _TAKES_ENABLE_GQA and q.shape[1] != k.shape[1] else {}
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(left, 0), **grouped)
    return out[None, :, :, :width]


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: list[int],
    dropout: float,
    scaling: float | None,
    left: int,
) -> torch.Tensor:
    """Each document by itself: the definition, and what runs on a CPU."""
    grouped = query.shape[1] != key.shape[1]
    outs = []
    for start, end in pairwise(ends):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        window = _window(end - start, left, query.device) if 0 <= left < end - start else None
        outs.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=window,
                dropout_p=dropout,
                is_causal=window is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous()


def _window(length: int, left: int, device: torch.device) -> torch.Tensor:
    """(length, length) bool: each token with itself and at most `left` tokens before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (distance >= 0) & (distance <= left)
