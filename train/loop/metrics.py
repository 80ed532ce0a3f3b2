"""Training metrics: losses per source, token accuracy, throughput, waiting for data, memory.

Everything is summed on the device, without a sync or a gather per micro-batch, and gathered over all processes once
before a log, an evaluation or a checkpoint. Times are of training alone, without evaluations and checkpoints.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from train.loop.pace import PARTS, Pace, slowest_rank
from train.loop.throughput import ModelFlops, attended_pairs
from train.run.distributed import gather

if TYPE_CHECKING:
    from accelerate import Accelerator

GIB = 2**30


def document_sums(outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sums over each document's trained tokens.

    Args:
        outputs: of TRL's fused LM head.
        batch: as SourceCollator makes it.

    Returns:
        (documents, 3) float64: negative log-likelihood in nats, correct first guesses, trained tokens. Each token of
        padding is a document of its own, without trained tokens. Of a part of a row, sums over its tokens alone.
    """
    columns = torch.stack([-outputs.log_probs[0].detach(), outputs.is_top1[0], outputs.label_mask[0]], dim=1)
    sums = torch.zeros(batch["cu_seq_lens_q"].numel() - 1, 3, dtype=torch.float64, device=columns.device)
    # A part is scored at every token, on the next one; both are of one document, as a document's first is not trained.
    scored = batch["seq_idx"][0, 0 if "shift_labels" in batch else 1 :]
    return sums.index_add_(0, scored.long(), columns.double())


def document_sources(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(documents,) int64: the index of each document's source."""
    return batch["source_ids"][0, batch["cu_seq_lens_q"][:-1].long()]


class Meter:
    """Sums of the steps since the last log.

    Args:
        source_names: the manifest's sources, in order.
        flops: of the model that is trained.
        peak: of one device, in operations a second, if known.
        row_ranks: number of ranks that hold parts of the same rows.
    """

    def __init__(
        self, source_names: list[str], flops: ModelFlops, peak: float | None, device: torch.device, row_ranks: int
    ):
        self.num_tokens = 0  # of all processes since the run began
        self._names, self._peak, self._row_ranks = source_names, peak, row_ranks
        self.flops = flops
        self._windows = list(flops.per_pair)
        size = 3 * len(source_names) + 1 + len(self._windows)
        self._step = torch.zeros(size, dtype=torch.float64, device=device)  # of this process and the running step
        self._sums = torch.zeros_like(self._step)  # of this process, not yet gathered
        self._gathered = torch.zeros(size, dtype=torch.float64)  # of all processes, not yet reported
        self._processes = 1
        self._steps = 0
        self._clock = _Clock()
        self._waited = self.memory = 0.0  # of the process with the most: seconds, and GiB at the peak
        self.pace = Pace(device)
        self._hosts = gather(socket.gethostname())
        self._paces = torch.zeros(len(self._hosts), len(PARTS), dtype=torch.float64)  # not yet reported
        self._paced_steps = 0

    def begin_step(self) -> None:
        """Before the step's first batch is fetched."""
        self._clock.run()

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each is there counts as waiting for data. What comes after the last one,
        until the forward pass, waits for other ranks: their trained tokens are counted together."""
        batches = self._clock.waiting(batches)
        while True:
            self.pace.begin("data")
            batch = next(batches, None)
            self.pace.begin("waiting")
            if batch is None:
                return
            yield batch

    def add(self, sums: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Count a micro-batch; `sums` as `document_sums` gives them. Filler rows and padding are documents of one
        token, which no real document is: it would have nothing to train."""
        per_source = 3 * len(self._names)
        self._step[:per_source].view(-1, 3).index_add_(0, document_sources(batch), sums)
        lengths = batch["cu_seq_lens_q"].diff().double()
        lengths = lengths * (lengths > 1)
        pairs = [attended_pairs(lengths, window) for window in self._windows]
        self._step[per_source:] += torch.stack([lengths.sum(), *pairs])

    def end_step(self, *, skipped: bool = False) -> None:
        """The step's update was made, or skipped: then nothing of it counts but its time."""
        if not skipped:
            self._sums += self._step
        self._step.zero_()
        self._steps += 1
        self._paced_steps += 1

    def gather(self, accelerator: Accelerator) -> None:
        """Add up over all processes. Every process must call it, after the same step. The only sync with the device."""
        own = [*self.pace.take(), self._clock.waited, memory_peak_gib(self._sums.device)]
        mine = torch.cat([self._sums, self._sums.new_tensor(own)])
        everyone = accelerator.gather(mine[None]).cpu()
        self._clock.pause()
        self._sums.zero_()
        self._processes = everyone.shape[0]
        sums = everyone[:, : -len(own)].sum(dim=0)
        sums[3 * len(self._names) :] /= self._row_ranks  # lengths are those of whole rows, on each of these ranks
        self._paces += everyone[:, -len(own) : -2]
        self._gathered += sums
        self.num_tokens += round(sums[3 * len(self._names)].item())
        self._waited, self.memory = everyone[:, -2:].amax(dim=0).tolist()

    def report(self, steps_left: int) -> dict[str, Any]:
        """The metrics of the steps that were gathered since the last report; docs/training.md says what they mean."""
        per_source = 3 * len(self._names)
        table, tokens = self._gathered[:per_source].view(-1, 3), self._gathered[per_source].item()
        metrics: dict[str, Any] = {**training_metrics(table, self._names)}
        seconds = max(self._clock.seconds, 1e-9)
        metrics |= {
            "num_tokens": self.num_tokens,
            "tokens_per_second_per_gpu": tokens / seconds / self._processes,
            "trained_tokens_per_second_per_gpu": table[:, 2].sum().item() / seconds / self._processes,
            "data_wait_share": self._waited / seconds,
            "memory_peak_gib": self.memory,
            "step_seconds": seconds / max(self._steps, 1),
            "hours_left": self._clock.seconds_per_step() * steps_left / 3600,
        }
        if self._peak:
            metrics["mfu"] = self._operations() / seconds / self._processes / self._peak
        metrics |= slowest_rank(self._paces, self._paced_steps, self._hosts)
        self._gathered.zero_()
        self._paces.zero_()
        self._steps = self._paced_steps = 0
        self._clock.reset()
        return metrics

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to report as this one would."""
        clock = {"seconds": self._clock.seconds, "waited": self._clock.waited}
        return {"num_tokens": self.num_tokens, "sums": self._gathered.tolist(), "steps": self._steps, **clock}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        if len(state.get("sums", [])) == len(self._gathered):
            self.num_tokens, self._steps = state["num_tokens"], state["steps"]
            self._gathered = torch.tensor(state["sums"], dtype=torch.float64)
            self._clock.seconds, self._clock.waited = state["seconds"], state["waited"]

    def _operations(self) -> float:
        """Floating-point operations of all processes since the last report."""
        per_source = 3 * len(self._names)
        tokens, *pairs = self._gathered[per_source:].tolist()
        trained = self._gathered[:per_source].view(-1, 3)[:, 2].sum().item()
        attention = sum(n * self.flops.per_pair[window] for n, window in zip(pairs, self._windows, strict=True))
        return tokens * self.flops.per_token + trained * self.flops.per_trained_token + attention


class _Clock:
    """Seconds of training, and of waiting for data within them."""

    def __init__(self) -> None:
        self.seconds = self.waited = 0.0
        self._since: float | None = None
        self._first: float | None = None
        self._steps = 0

    def run(self) -> None:
        """Called before every step."""
        now = time.perf_counter()
        self._since = self._since or now
        self._first = self._first or now
        self._steps += 1

    def pause(self) -> None:
        """What follows is not training."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def reset(self) -> None:
        """Start again at 0."""
        self.seconds = self.waited = 0.0

    def seconds_per_step(self) -> float:
        """Since the start of this process, evaluations and checkpoints included."""
        return (time.perf_counter() - self._first) / self._steps if self._first else 0.0

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch


def training_metrics(sums: torch.Tensor, names: list[str]) -> dict[str, float]:
    """token_accuracy, and loss_SOURCE and token_accuracy_SOURCE of each source with trained tokens.

    Args:
        sums: (sources, 3), the columns as of `document_sums`.
    """
    metrics = {}
    for name, (loss, correct, tokens) in zip(names, sums.tolist(), strict=True):
        if tokens:
            metrics[f"loss_{name}"] = loss / tokens
            metrics[f"token_accuracy_{name}"] = correct / tokens
    _, correct, tokens = sums.sum(dim=0).tolist()
    return {"token_accuracy": correct / tokens, **metrics} if tokens else metrics


def memory_peak_gib(device: torch.device) -> float:
    """The most memory that tensors took on this device since the process began; of a CPU, that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
