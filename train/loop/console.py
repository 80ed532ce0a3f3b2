"""What a run shows as it trains: a readable line for each log, or a bar on a terminal, and a table for each evaluation.

All figures, at full precision, are in `trainer_state.json` and in the trackers; here are those that people look for.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)

NOTABLE_SLOWDOWN = 1.1  # of the slowest rank: healthy ones stay below
NOTABLE_WAIT = 0.05  # share of the time spent waiting for data
NOTABLE_STALL = 1.0  # seconds that training waited for a checkpoint


def install(trainer: Any, sources: list[str]) -> None:
    """Replace what transformers prints: dicts of all metrics, on each node.

    Args:
        trainer: before it trains.
        sources: names, in the order of the manifest.
    """
    for kind in (PrinterCallback, ProgressCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(kind)
    if trainer.is_world_process_zero():
        trainer.add_callback(Lines(sources) if trainer.args.disable_tqdm else Bar(sources))


class Lines(TrainerCallback):
    """For a log file."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say it."""
        for line in described(logs or {}, state, self.sources, args.device.type):
            log.info(line)


class Bar(ProgressCallback):
    """For a terminal: the step's figures beside transformers' bar, evaluations and the end above it."""

    def __init__(self, sources: list[str]) -> None:
        super().__init__()
        self.sources = sources

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show it."""
        logs = logs or {}
        bar: Any = self.training_bar
        if bar is None or "loss" not in logs:
            for line in described(logs, state, self.sources, args.device.type):
                (bar.write if bar is not None else log.info)(line)
            return
        bar.set_postfix_str("  ".join(step_figures(logs, self.sources, args.device.type, left=False)))


def described(logs: dict[str, Any], state: TrainerState, sources: list[str], device: str) -> Iterator[str]:
    """Lines for what a trainer logs: of steps, of an evaluation, or of the end.

    Args:
        logs: the metrics of docs/training.md.
        device: type of the device, "cuda" or "cpu".
    """
    if "loss" in logs:
        figures = "  ".join(step_figures(logs, sources, device, left=True))
        yield f"step {state.global_step:,}/{state.max_steps:,}  {figures}"
    elif "eval_loss" in logs:
        yield from evaluation_table(logs, state, sources)
    elif "train_runtime" in logs:
        yield f"trained for {duration(logs['train_runtime'])}, mean loss {logs['train_loss']:.3f}"


def step_figures(logs: dict[str, Any], sources: list[str], device: str, *, left: bool) -> Iterator[str]:
    """Of the steps since the last log.

    Args:
        left: with the time that is left; a bar has its own.
    """
    yield f"loss {logs['loss']:.3f}{by_source(logs, sources)}"
    if "grad_norm" in logs:
        yield f"norm {logs['grad_norm']:.3g}"
    yield f"lr {logs['learning_rate']:.3g}"
    if rate := logs.get("tokens_per_second_per_gpu"):
        yield f"{thousands(rate)} tok/s/{'process' if device == 'cpu' else 'GPU'}"
    if "mfu" in logs:
        yield f"MFU {100 * logs['mfu']:.0f} %"
    yield from remarks(logs)
    if left and "hours_left" in logs:
        yield f"{duration(3600 * logs['hours_left'])} left"


def by_source(logs: dict[str, Any], sources: list[str]) -> str:
    """The loss of each source that was trained, where there are several."""
    found = [(name, logs[f"loss_{name}"]) for name in sources if f"loss_{name}" in logs]
    return f" ({', '.join(f'{name} {loss:.2f}' for name, loss in found)})" if len(sources) > 1 and found else ""


def remarks(logs: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be."""
    if logs.get("skipped_steps"):
        yield f"{logs['skipped_steps']} steps skipped"
    if logs.get("slowdown", 0) >= NOTABLE_SLOWDOWN:
        yield f"rank {logs['slowest_rank']} on {logs['slowest_host']} {logs['slowdown']:.1f} times as slow"
    if logs.get("data_wait_share", 0) >= NOTABLE_WAIT:
        yield f"{100 * logs['data_wait_share']:.0f} % waiting for data"
    if logs.get("save_stall_seconds", 0) >= NOTABLE_STALL:
        yield f"waited {logs['save_stall_seconds']:.1f} s for a checkpoint"


def evaluation_table(logs: dict[str, Any], state: TrainerState, sources: list[str]) -> Iterator[str]:
    """Loss, its change against the base model, and accuracy: of all, and of each source where there are several."""
    rows = [("all", "")] + [(name, f"{name}_") for name in sources if len(sources) > 1 and f"eval_{name}_loss" in logs]
    width = max(columns(name) for name, _ in rows)
    yield f"evaluation at step {state.global_step:,}: loss, change against the base model, token accuracy"
    for name, prefix in rows:
        change = logs.get(f"eval_{prefix}loss_change")
        figures = [f"{logs[f'eval_{prefix}loss']:.4f}", "      -" if change is None else f"{change:+.4f}"]
        figures.append(f"{logs.get(f'eval_{prefix}token_accuracy', 0):.4f}")
        yield f"  {name}{' ' * (width - columns(name))}  {'  '.join(figures)}"


def columns(text: str) -> int:
    """That a terminal gives it: Korean letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def thousands(number: float) -> str:
    """41200 as 41.2k."""
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """In two units at most: 2 h 13 min, 13 min, 45 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
