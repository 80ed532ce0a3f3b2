"""Stops at, or skips, bad steps: those whose loss or gradients are not finite, or whose loss is a spike.

Gradients that are not finite are never applied. A loss spike is turned into such gradients: the loss of its last
micro-batch becomes NaN on every process, decided on the device from the loss of all processes. DeepSpeed then discards
the step by its own overflow check, on all processes alike. Without DeepSpeed the gradients, whose norm all processes
know, are dropped before the optimizer sees them. Weights and optimizer stay bit for bit those of a run without the
batch.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from train.loop.metrics import document_sources
from train.loop.pace import Pace
from train.run import atomic_files
from train.run.atomic_files import write_json_atomically
from train.run.distributed import gather, is_first

log = logging.getLogger(__name__)

FOLDER = "bad_steps"
WINDOW = 100  # good steps that a loss is compared with
FEWEST = 20  # good steps before which no loss is a spike
MOST_IN_A_ROW = 10  # skipped steps; after that the weights, not the batches, must be at fault


class BadStepError(ValueError):
    """Training cannot go on with this step."""


class StepGuard:
    """Watches each step's loss and gradient norm.

    Args:
        policy: "stop", "skip" or "ignore".
        sigma: a loss is a spike if it is more than this number of standard deviations above the mean of the last
            WINDOW good steps; None: no loss is.
        scaled: whether a gradient scaler skips steps of its own (fp16): then only the loss is judged.
        run_dir: where bad steps are described.
        source_names: the manifest's sources, in order.
        shards: (name, rows) of the training split's shards, in order.
        pace: measures how long this process waits for the others.
        row_group: the ranks that hold parts of the same rows; None: each has rows of its own.
    """

    def __init__(
        self,
        policy: str,
        sigma: float | None,
        *,
        scaled: bool,
        run_dir: Path,
        source_names: list[str],
        shards: list[tuple[str, int]],
        pace: Pace | None = None,
        row_group: torch.distributed.ProcessGroup | None = None,
    ):
        self.policy = policy
        self.skipped = 0  # steps since the run began
        # Whether any process had a signal when the last micro-batch was watched, and when (time.perf_counter) this
        # was asked. None: not asked in this step, as in a world of one process.
        self.signalled: bool | None = None
        self.asked_at: float | None = None
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._in_a_row = 0
        self._sigma, self._scaled, self._run_dir = sigma, scaled, run_dir
        self._names, self._shards, self._pace = source_names, shards, pace
        self._row_group = row_group
        self._loss: torch.Tensor | float = 0.0  # of the running step
        self._signals: torch.Tensor | None = None  # above 0 where any process had one
        self._documents: list[tuple[torch.Tensor, ...]] = []  # of the running step, by micro-batch

    def watch(
        self,
        loss: torch.Tensor,
        sums: torch.Tensor,
        batch: dict[str, torch.Tensor],
        *,
        last: bool,
        signalled: bool = False,
    ) -> torch.Tensor:
        """Record a micro-batch; returns the loss to go backward from.

        The step's loss is reduced over all processes, so that all judge alike. The signals are reduced with it: a
        reduction of their own would cost time in every step.

        Args:
            loss: so scaled that the mean over processes of the sum over micro-batches is the step's loss.
            sums: as `document_sums` gives them.
            last: whether it is the step's last micro-batch.
            signalled: whether this process got a signal; read at the last micro-batch.
        """
        if self.policy == "ignore":
            return loss
        rows = batch.get("document_rows", batch["cu_seq_lens_q"][:-1] * 0 - 1)
        self._documents.append((rows, batch["cu_seq_lens_q"].diff(), document_sources(batch), sums))
        self._loss = self._loss + loss.detach()
        if not last:
            return loss
        if torch.distributed.is_initialized():
            self.asked_at = time.perf_counter()
            with self._pace.waiting() if self._pace else nullcontext():
                self._loss, self._signals = mean_over_processes(self._loss, float(signalled))
        if not self._sigma:
            return loss
        # Not torch.where(..., nan, loss): that has a gradient of zero, not of NaN.
        return loss * torch.where(self._loss > self._limit(), torch.nan, 1.0)

    def _limit(self) -> float:
        if not self._sigma or len(self._losses) < FEWEST:
            return math.inf
        return statistics.fmean(self._losses) + self._sigma * statistics.stdev(self._losses)

    def end_step(self, step: int, grad_norm: Any) -> bool:
        """Whether the step is to be skipped. Every process must call it with the same norm.

        Args:
            step: its number, from 1.
            grad_norm: of all processes' gradients; a number, or a tensor, which is the one sync of a step.

        Raises:
            BadStepError: the step is bad and the policy is to stop, or too many steps were bad.
        """
        self.signalled = None
        if self.policy == "ignore":
            return False
        documents, self._documents = self._documents, []
        loss, norm = self._values(grad_norm)
        limit = self._limit()
        reason = self._judge(loss, norm, limit)
        if reason is None:
            self._in_a_row = 0
            if self._sigma and math.isfinite(loss):
                self._losses.append(loss)
            return False
        path = self._describe(step, reason, loss, norm, documents)
        self._in_a_row += 1
        self.skipped += 1
        if self.policy == "stop" or self._in_a_row >= MOST_IN_A_ROW:
            raise BadStepError(self._advice(step, reason, path))
        log.warning(f"step {step} skipped: {reason}; its documents are in {path}")
        return True

    def _values(self, grad_norm: Any) -> tuple[float, float]:
        """Loss and norm, and the signals, read from the device at once."""
        norm = torch.as_tensor(grad_norm)
        scalars = [torch.as_tensor(self._loss), norm]
        if self._signals is not None:
            scalars.append(self._signals)
        alike = [scalar.detach().to(norm.device, norm.dtype) for scalar in scalars]
        loss_value, norm_value, *signals = torch.stack(alike).tolist()
        self._loss, self._signals = 0.0, None
        self.signalled = signals[0] > 0 if signals else None
        return loss_value, norm_value

    def _judge(self, loss: float, norm: float, limit: float) -> str | None:
        if loss > limit:
            return f"the loss {loss:.4g} is above {limit:.4g}, {self._sigma:g} standard deviations over the last steps"
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm) and not self._scaled:
            return f"the gradient norm is {norm}"
        return None

    def _advice(self, step: int, reason: str, path: Path) -> str:
        again = f", {self._in_a_row} steps in a row" if self.policy == "skip" else ""
        return (
            f"stopped before the update of step {step}: {reason}{again}. Its documents, with their losses, are in "
            f"{path}. Look at those with the highest losses. Then run again, which resumes from the newest complete "
            "checkpoint: with a lower learning_rate, with on_bad_step: skip, or, as a new run, without those documents"
        )

    def _describe(
        self, step: int, reason: str, loss: float, norm: float, documents: list[tuple[torch.Tensor, ...]]
    ) -> Path:
        """Write the step's rows and documents of all processes."""
        rows = [row for found in gather(self._rows(self._whole(documents))) for row in found]
        path = self._run_dir / FOLDER / f"step-{step}.json"
        if is_first():
            content = {"step": step, "reason": reason, "loss": number(loss), "grad_norm": number(norm), "rows": rows}
            with atomic_files.warning(f"the documents of step {step} are not kept in {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomically(path, content)
        return path

    def _whole(self, documents: list[tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
        """The documents with their sums over all parts of their rows, on the first rank of those that hold the parts;
        none on the others. Every process must call it."""
        if self._row_group is None:
            return documents
        for *_, sums in documents:
            torch.distributed.all_reduce(sums, group=self._row_group)
        return documents if self._row_group.rank() == 0 else []

    def _rows(self, documents: list[tuple[torch.Tensor, ...]]) -> list[dict[str, Any]]:
        found: dict[int, list[dict[str, Any]]] = {}
        for columns in documents:
            for row, length, source, (loss, _, trained) in zip(*(c.tolist() for c in columns), strict=True):
                if trained:
                    entry = {"source": self._names[source], "tokens": length, "trained_tokens": int(trained)}
                    found.setdefault(row, []).append({**entry, "loss": number(loss / trained)})
        return [{**self._locate(row), "documents": entries} for row, entries in found.items()]

    def _locate(self, row: int) -> dict[str, Any]:
        """Shard and row in it, from the number over all shards."""
        for name, rows in self._shards:
            if 0 <= row < rows:
                return {"shard": name, "row": row}
            row -= rows
        return {"shard": None, "row": None}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge as this one would."""
        return {"losses": list(self._losses), "skipped": self.skipped, "in_a_row": self._in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self._losses.extend(state.get("losses", []))
        self.skipped, self._in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)


def mean_over_processes(value: torch.Tensor, other: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of a scalar on the device and of a number over all processes, on the device, by one reduction. Every
    process must call it."""
    pair = torch.stack([value, torch.full_like(value, other)])  # filled there: nothing is copied from the host
    torch.distributed.all_reduce(pair)
    pair /= torch.distributed.get_world_size()
    return pair[0], pair[1]


def number(value: float) -> float | str:
    """As JSON can hold it: NaN and infinities as text."""
    return value if math.isfinite(value) else str(value)
