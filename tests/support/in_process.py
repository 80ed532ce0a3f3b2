"""`train.sft` run to its end inside the test's own process, as one process; and a plain loop to compare it with."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import document_rows, history, run_config


@contextmanager
def as_a_fresh_process() -> Iterator[None]:
    """What a run leaves behind in a process is put back: signal handlers, environment, accelerate's state."""
    from accelerate.state import AcceleratorState

    signals = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    handlers, environment = [signal.getsignal(s) for s in signals], dict(os.environ)
    AcceleratorState._reset_state(True)
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)
        AcceleratorState._reset_state(True)
        torch._dynamo.reset()
        torch._dynamo.config.suppress_errors = False


def train_here(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Train with `options` into `folder / "run"`; the logged metrics. Fails if the run does not end with 0."""
    from train.sft import main

    folder.mkdir(parents=True, exist_ok=True)
    one = {"expected_world_size": 1, "expected_distributed_type": "NO", "disable_tqdm": True}
    config = run_config(folder / "run.yaml", **{"output_dir": str(folder / "run"), **one, **options})
    with as_a_fresh_process():
        assert main(["--config", str(config)]) == 0
    return [entry for entry in history(folder / "run") if "loss" in entry]


@dataclass
class Trained:
    """What a plain loop gives: per step loss and gradient norm before clipping, and the model."""

    losses: list[float]
    norms: list[float]
    model: Any


def document_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each trained token, by definition."""
    kept = targets != -100
    return -logits[kept].log_softmax(-1).gather(1, targets[kept][:, None])[:, 0]


def train_plainly(
    model: Any,
    shards: Path,
    steps: int,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = document_losses,
    extra: Callable[[list[list[Any]]], torch.Tensor] | None = None,
    max_grad_norm: float = 1.0,
) -> Trained:
    """All documents of the train split in each step, one at a time, unpacked, in the model's dtype.

    Args:
        losses: of the trained tokens, whose mean is the loss.
        extra: added to it; takes the outputs of the documents by row, for models with router logits.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = document_rows(shards, "train")
    optimizer, found = make_optimizer(model), Trained([], [], model)
    more = {"output_router_logits": True} if extra else {}
    for _ in range(steps):
        parts, outputs = [], [[model(input_ids=torch.tensor([d[0]]), use_cache=False, **more) for d in r] for r in rows]
        for (_, labels, _), output in zip(chain(*rows), chain(*outputs), strict=True):
            parts.append(losses(output.logits[0, :-1].float(), torch.tensor(labels[1:], dtype=torch.long)))
        loss = torch.cat(parts).mean() + (extra(outputs) if extra else 0.0)
        optimizer.zero_grad()
        loss.backward()
        found.norms.append(torch.nn.utils.clip_grad_norm_(trained, max_grad_norm).item())
        found.losses.append(loss.item())
        optimizer.step()
    return found


def assert_equal_training(got: list[dict[str, Any]], expected: Trained, loss: float, norm: float) -> None:
    """Loss and gradient norm of every step, within relative tolerances."""
    assert [entry["loss"] for entry in got] == pytest.approx(expected.losses, rel=loss)
    assert [entry["grad_norm"] for entry in got] == pytest.approx(expected.norms, rel=norm)


def assert_equal_weights(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    """Every tensor, by name."""
    assert set(got) >= set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            got[name].float(), tensor.float(), rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )
