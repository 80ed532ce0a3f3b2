"""The loss head that keeps its logits gives what TRL's gives."""

from __future__ import annotations

import pytest
import torch
import trl.trainer.utils as trl_head
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS

from train.model.kept_logits import GIB, KeptLogits, keeping

TOKENS, WIDTH, VOCABULARY = 37, 16, 300


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(3)
    shapes = ((TOKENS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    made = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return made[0], made[1], made[2] if bias else None, targets


def outputs_and_gradients(function, *, dtype=torch.float32, bias=True, weigh=None, **options):
    hidden, weight, offset, targets = inputs(dtype, bias)
    settings = {"final_logit_softcapping": None, "logit_scale": 1.0, "outputs": OPTIONAL_OUTPUTS, **options}
    found = function.apply(hidden, weight, offset, targets, settings.pop("temperature", 1.0), 128, *settings.values())
    loss = -(found[0] if weigh is None else found[0] * weigh).sum()
    if found[1] is not None:
        loss = loss + 0.3 * found[1].sum()
    leaves = [x for x in (hidden, weight, offset) if x is not None]
    return found, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "outputs": ("log_probs", "is_top1")},
        {"final_logit_softcapping": 3.0, "logit_scale": 0.5, "temperature": 0.7},
        {"weigh": torch.linspace(0, 2, TOKENS), "outputs": ()},
    ],
)
def test_it_equals_trls(options):
    """In fp32: outputs, and gradients of hidden states, weight and bias."""
    expected, gradients = outputs_and_gradients(ChunkedLogProbFunction, **options)
    got, got_gradients = outputs_and_gradients(KeptLogits, **options)
    for one, other in zip((*got, *got_gradients), (*expected, *gradients), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_bf16_is_as_near_to_the_truth_as_trls():
    """Against full logits in fp64."""
    hidden, weight, bias, targets = inputs()
    loss = torch.nn.functional.cross_entropy(hidden @ weight.t() + bias, targets, reduction="sum")
    truth = torch.autograd.grad(loss, (hidden, weight, bias))
    off = []
    for function in (KeptLogits, ChunkedLogProbFunction):
        _, found = outputs_and_gradients(function, dtype=torch.bfloat16, outputs=())
        off.append([((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)])
    assert all(ours < 1.1 * trls < 0.02 for ours, trls in zip(*off, strict=True)), off


def test_logits_serve_for_one_backward_pass():
    hidden, weight, bias, targets = inputs(torch.float32)
    loss = KeptLogits.apply(hidden, weight, bias, targets, 1.0, 128, None, 1.0, ())[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="they serve for one"):
        loss.backward()


@pytest.mark.parametrize(("share", "kept"), [(1.0, True), (0.99, False)])
def test_larger_logits_are_computed_again(share, kept, monkeypatch):
    called = []
    monkeypatch.setattr(KeptLogits, "apply", lambda *args: called.append(args))
    hidden, weight, bias, targets = inputs(torch.float32)
    with keeping(share * TOKENS * VOCABULARY * 4 / GIB):
        trl_head._ChunkedLogProbFunction.apply(hidden, weight, bias, targets, 1.0, 128)
        with torch.no_grad():  # nothing is computed again then
            trl_head._ChunkedLogProbFunction.apply(hidden, weight, bias, targets, 1.0, 128)
    assert bool(called) == kept and len(called) <= 1
    assert trl_head._ChunkedLogProbFunction is ChunkedLogProbFunction
    with keeping(0):
        assert trl_head._ChunkedLogProbFunction is ChunkedLogProbFunction
