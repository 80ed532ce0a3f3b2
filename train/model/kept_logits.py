"""`keep_logits_gib`: TRL's loss head without its second product of hidden states and vocabulary.

TRL computes logits tile by tile and forgets them; its backward pass computes each tile again, a quarter of the head's
products. Where all logits of a forward pass fit into the memory that the run gives for them, they are kept instead, and
the backward pass overwrites them with their gradient. The arithmetic on a tile is TRL's (trl.kernels.chunked_logprob).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import trl.trainer.utils as trl_head
from trl.kernels import chunked_logprob as tiles

GIB = 2**30


@contextmanager
def keeping(gib: float) -> Iterator[None]:
    """TRL's loss heads that are called in here keep logits of at most this size."""
    if not gib:
        yield
        return
    with mock.patch.object(trl_head, "_ChunkedLogProbFunction", _Choice(gib * GIB)):
        yield


class _Choice:
    """Stands in for TRL's function: by the size of the logits it is ours or TRL's."""

    def __init__(self, most: float):
        self._most = most

    def apply(self, hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        """TRL's arguments and outputs."""
        size = hidden.shape[0] * weight.shape[0] * _dtype_of(hidden).itemsize
        fits = 0 < size <= self._most and torch.is_grad_enabled()
        function: Any = KeptLogits if fits else tiles.ChunkedLogProbFunction
        return function.apply(hidden, weight, *rest)


def _dtype_of(hidden: torch.Tensor) -> torch.dtype:
    """That of the products."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class KeptLogits(torch.autograd.Function):
    """`trl.kernels.ChunkedLogProbFunction`, all of whose logits are one tile that is kept.

    Takes and returns what that does: hidden states (tokens, width), weight (vocabulary, width), bias (vocabulary,) or
    None, targets (tokens,) int64. The first output are log-probabilities of the targets, (tokens,) fp32. Differentiable
    once, by these and by the entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = tiles.OPTIONAL_OUTPUTS,
    ) -> tuple[torch.Tensor | None, ...]:
        """As TRL's."""
        ctx.set_materialize_grads(False)
        dtype = _dtype_of(hidden)
        factor = weight.to(dtype)
        logits = torch.mm(hidden.to(dtype), factor.t())
        if bias is not None:
            logits.add_(bias.to(dtype))
        ctx.arguments = {
            "logit_scale": logit_scale,
            "softcap": final_logit_softcapping or 1.0,
            "inv_t": 1 / temperature,
            "HAS_SOFTCAP": final_logit_softcapping is not None,
        }
        found = _Statistics(logits, targets, outputs, ctx.arguments)
        ctx.logits, ctx.factor = logits, factor if factor is not weight else None
        ctx.save_for_backward(hidden, weight, bias, targets, found.log_z, found.entropy_or_log_z)
        ctx.mark_non_differentiable(*(x for x in found.results[2:] if x is not None))
        return found.results

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: torch.Tensor | None, grad_entropy: torch.Tensor | None, *_: Any
    ) -> tuple[torch.Tensor | None, ...]:
        """Of the hidden states, the weight and the bias."""
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        gradient, ctx.logits = ctx.logits, None
        if gradient is None:
            raise RuntimeError("the kept logits were overwritten by a backward pass: they serve for one")
        _overwrite(gradient, targets, log_z, entropy, grad_logprobs, grad_entropy, ctx.arguments)
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        with trl_head.maybe_gather_lm_head_ctx(weight, bias):
            factor = weight if ctx.factor is None else ctx.factor
            return (
                _product(gradient, factor, hidden.dtype) if of_hidden else None,
                _of_weight(gradient, hidden, weight.dtype) if of_weight else None,
                gradient.sum(0, dtype=torch.float32).to(bias.dtype) if of_bias else None,
                *(None for _ in range(6)),
            )


class _Statistics:
    """What TRL's kernel folds the logits into, and the outputs that follow."""

    def __init__(
        self, logits: torch.Tensor, targets: torch.Tensor, outputs: tuple[str, ...], arguments: dict[str, Any]
    ):
        tokens, vocabulary = logits.shape
        largest, before_target = (logits.new_full((tokens,), float("-inf"), dtype=torch.float32) for _ in range(2))
        sums = logits.new_zeros((5, tokens), dtype=torch.float32)
        exponentials, products, squares, plain, target_logit = sums
        fold = tiles._forward_kernel[(tokens,)] if tiles._use_triton(logits.device) else tiles._forward_tile
        fold(
            logits,
            logits.stride(0),
            targets,
            largest,
            exponentials,
            products,
            squares,
            plain,
            before_target,
            target_logit,
            0,
            vocabulary,
            BLOCK_SIZE=tiles._BLOCK_SIZE,
            **{f"HAS_{name.upper()}": name in outputs for name in tiles.OPTIONAL_OUTPUTS},
            **arguments,
        )
        self.log_z = largest + exponentials.log()
        optional = {
            "entropy": lambda: self.log_z - products / exponentials,
            "log_sum_sq_probs": lambda: squares.log() - 2 * exponentials.log(),
            "mean_logits": lambda: plain / vocabulary,
            "is_top1": lambda: (target_logit >= largest) & (target_logit > before_target),
        }
        made = {name: make() if name in outputs else None for name, make in optional.items()}
        self.results = (target_logit - self.log_z, *(made[name] for name in tiles.OPTIONAL_OUTPUTS))
        self.entropy_or_log_z = self.log_z if made["entropy"] is None else made["entropy"]


def _overwrite(
    logits: torch.Tensor,
    targets: torch.Tensor,
    log_z: torch.Tensor,
    entropy: torch.Tensor,
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    arguments: dict[str, Any],
) -> None:
    """Put the gradient of the loss by the logits in their place."""
    tokens, vocabulary = logits.shape
    blocks = -(-vocabulary // tiles._BLOCK_SIZE)
    fold = tiles._backward_kernel[(tokens, blocks)] if tiles._use_triton(logits.device) else tiles._backward_tile
    fold(
        logits,
        logits.stride(0),
        targets,
        log_z,
        entropy,
        log_z if grad_logprobs is None else grad_logprobs.float().contiguous(),
        log_z if grad_entropy is None else grad_entropy.float().contiguous(),
        0,
        vocabulary,
        HAS_LOGPROB_GRAD=grad_logprobs is not None,
        HAS_ENTROPY_GRAD=grad_entropy is not None,
        BLOCK_SIZE=tiles._BLOCK_SIZE,
        **arguments,
    )


def _of_weight(gradient: torch.Tensor, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(vocabulary, width) in `dtype`: one product over all tokens, which is rounded once."""
    left, right = gradient.t(), hidden.to(gradient.dtype)
    return torch.mm(left, right) if dtype == left.dtype else _product(left, right, dtype)


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In `dtype`. The sum over a vocabulary of half-precision products stays in fp32 to its end, as in TRL's."""
    if left.device.type == "cuda" and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32).to(dtype)
    return torch.mm(left.float(), right.float()).to(dtype)
