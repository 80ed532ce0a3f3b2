"""train.loop.balancing: micro-batches without a trained token have no part in the balancing loss."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from train.loop.balancing import BalancingShare

TRAINED, FILLER = {"labels": torch.tensor([[-100, 5, 6]])}, {"labels": torch.tensor([[-100, -100]])}


@pytest.mark.parametrize(
    ("step", "elsewhere", "shares"),
    [
        ([TRAINED, TRAINED], 2, [0.5, 0.5]),  # as without fillers: one part of the accumulated steps
        ([TRAINED, FILLER], 2, [2 / 3, 0.0]),
        ([FILLER, FILLER], 2, [0.0, 0.0]),
        ([FILLER], 0, [0.0]),
        ([{"labels": torch.tensor([[7, -100]])}], 1, [0.0]),  # the first token has no logits before it
    ],
)
def test_shares(step, elsewhere, shares):
    """Of one process of two, whose gradients are averaged."""
    accelerator = SimpleNamespace(
        num_processes=2, device=torch.device("cpu"), reduce=lambda mine, reduction: mine + elsewhere
    )
    balancing = BalancingShare(accelerator)
    balancing.begin_step(step)
    assert [balancing.of(batch).item() for batch in step] == pytest.approx(shares)
