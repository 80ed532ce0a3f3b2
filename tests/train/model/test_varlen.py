"""The GPU's way through `varlen`, without a GPU.

A stand-in with the signature of each torch's kernel checks what it is given and computes each document by itself.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import pytest
import torch

from train.model import varlen

LENGTHS = [1, 7, 20, 3]
ENDS = torch.tensor([0, 1, 8, 28, 31], dtype=torch.int32)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


class Kernel:
    """What torch's kernels share. Keeps the arguments of each call."""

    def __init__(self):
        self.calls = []

    def compute(self, q, k, v, ends, given):
        self.calls.append({"q": q, "k": k, "v": v, "ends": ends, **given})
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16 and ends.dtype == torch.int32
        assert q.shape[2] == k.shape[2] == v.shape[2], "one head_dim for all"
        assert all(tensor.stride(-1) == 1 for tensor in (q, k, v))
        assert given["max_q"] == given["max_k"] == max(LENGTHS)
        assert given["window_size"][1] == 0, "causal"
        groups, left = q.shape[1] // k.shape[1], given["window_size"][0]
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
        return torch.cat([attend(*(t[a:b] for t in (q, k, v)), given["scale"], left) for a, b in pairwise(ends)])


def attend(q, k, v, scale, left):
    """Causal attention of one document, (tokens, heads, head_dim), in fp32, by its definition."""
    q, k, v = (tensor.as_subclass(torch.Tensor).float().transpose(0, 1) for tensor in (q, k, v))
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])[None]
    seen = (distance >= 0) & ((distance <= left) | (left < 0))
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


class Torch211(Kernel):
    """Finds grouped heads by itself; knows no flag for them."""

    def __call__(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        given = {"max_q": max_q, "max_k": max_k, "scale": scale, "window_size": window_size}
        return self.compute(query, key, value, cu_seq_q, given)


class Torch213(Kernel):
    """Refuses grouped heads without the flag, as torch >= 2.12 does."""

    def __call__(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
        seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        assert enable_gqa or query.shape[1] == key.shape[1], "Try setting enable_gqa=True for GQA"
        given = {"max_q": max_q, "max_k": max_k, "scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        return self.compute(query, key, value, cu_seq_q, given)


@pytest.fixture(params=[Torch211, Torch213])
def kernel(request, monkeypatch):
    """The kernel, and `train.model.varlen` as it is where torch brings this one."""
    kernel = request.param()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    return kernel


def fresh_module():
    """`train.model.varlen` executed once more, with the kernel that is there now."""
    spec = importlib.util.spec_from_file_location("varlen_with_another_kernel", varlen.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(kv_heads, value_width=16):
    random = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 31, 16), (1, kv_heads, 31, 16), (1, kv_heads, 31, value_width)]
    return [torch.randn(shape, generator=random).bfloat16() for shape in shapes]


@pytest.mark.parametrize("window", [None, 5, 1000])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_each_kernel_gets_what_it_takes(kernel, kv_heads, window):
    q, k, v = tensors(kv_heads)
    more = {"cu_seq_lens_q": ENDS, "max_length_q": max(LENGTHS), "sliding_window": window, "scaling": 0.3}
    got, _ = fresh_module().varlen_forward(torch.nn.Module(), *(t.as_subclass(OnGpu) for t in (q, k, v)), None, **more)
    expected, _ = varlen.varlen_forward(torch.nn.Module(), *(t.float() for t in (q, k, v)), None, **more)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected, rtol=1e-5, atol=1e-5)
    (call,) = kernel.calls
    assert call["window_size"] == ((4, 0) if window == 5 else (-1, 0)) and call["scale"] == 0.3
    assert call.get("enable_gqa", False) is (isinstance(kernel, Torch213) and kv_heads < 4)
    assert call["v"].data_ptr() == v.data_ptr(), "nothing is copied"


def test_values_narrower_than_keys(kernel):
    """As in multi-head latent attention: filled up for the kernel, and cut off again."""
    q, k, v = tensors(4, value_width=8)
    more = {"cu_seq_lens_q": ENDS, "max_length_q": max(LENGTHS)}
    got, _ = fresh_module().varlen_forward(torch.nn.Module(), *(t.as_subclass(OnGpu) for t in (q, k, v)), None, **more)
    expected, _ = varlen.varlen_forward(torch.nn.Module(), *(t.float() for t in (q, k, v)), None, **more)
    assert got.shape == (1, 31, 4, 8)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected, rtol=1e-5, atol=1e-5)
    assert kernel.calls[0]["scale"] == 16**-0.5


def test_the_kernel_of_this_torch_takes_what_it_is_given():
    """The stand-ins can grow old; this one is real."""
    from train.model.attention import _kernel_lacks

    assert _kernel_lacks() == []
