"""The run on Weights & Biases: one run over all resumes, and training that goes on whatever becomes of W&B.

transformers' own callback logs. Here it does so in a thread of its own, so that the training loop waits for nothing and
sees no exception; and the run goes on offline if W&B does not answer at the start. Mode, project, entity, tags, notes
and timeouts are W&B's own environment variables (WANDB_MODE, WANDB_PROJECT, WANDB_TAGS, WANDB_NOTES, ...).
"""

from __future__ import annotations

import copy
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seconds; W&B's own are 90 and endless. It may use up the first two or three times.
TIMEOUTS = {"init_timeout": 20.0, "finish_timeout": 60.0}
REPORT_FILES = ("report.json", "report.html")


def use_safe_wandb(trainer: Any, record: dict[str, Any]) -> None:
    """Put our callback in the place of transformers'."""
    from transformers.integrations import WandbCallback

    trainer.remove_callback(WandbCallback)
    trainer.add_callback(make_wandb_callback(record))


def make_wandb_callback(record: dict[str, Any]) -> Any:
    """The callback.

    Args:
        record: what the run was made from; goes into the W&B run's config as `packhaul`.
    """
    from transformers.integrations import WandbCallback

    class SafeWandbCallback(WandbCallback):
        """transformers' callback, whose work is done by another thread."""

        def __init__(self) -> None:
            super().__init__()
            self._worker = Worker()
            self._uploads = Worker()  # files: these ask the server, and may wait long for it

        def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
            self._initialized = True
            if state.is_world_process_zero:
                base = super().setup
                self._worker.submit(lambda: start(args.run_name))
                self._worker.submit(lambda: base(args, state, model, **kwargs))
                self._worker.submit(lambda: describe(record))
                self._upload(lambda: log_report(record))

        def on_log(
            self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any
        ) -> None:
            base, then, logs = super().on_log, copy.copy(state), dict(logs)
            self._worker.submit(lambda: base(args, then, control, model, logs, **kwargs))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            base, then = super().on_save, copy.copy(state)
            self._worker.submit(lambda: base(args, then, control, **kwargs))

        def on_train_end(
            self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
        ) -> None:
            base = super().on_train_end
            self._worker.submit(lambda: base(args, state, control, model, processing_class, **kwargs))
            if self._worker.drain(TIMEOUTS["finish_timeout"]):
                self._uploads.drain(TIMEOUTS["finish_timeout"])

        def log_samples(self, rows: list[dict[str, Any]]) -> None:
            """A table of answers to held-out prompts; called by the first process."""
            self._upload(lambda: log_table("samples", rows))

        def _upload(self, action: Callable[[], None]) -> None:
            """Once what was asked before, such as the start, is done."""
            self._worker.submit(lambda: self._uploads.submit(action))

    return SafeWandbCallback()


class Worker:
    """Does things one after the other in a thread of its own. What fails is said, once for each kind of error."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._said: set[str] = set()
        threading.Thread(target=self._work, daemon=True, name="wandb worker").start()

    def submit(self, action: Callable[[], Any]) -> None:
        """Returns at once."""
        self._queue.put(action)

    def drain(self, timeout: float) -> bool:
        """Whether all was done within so many seconds."""
        done = threading.Event()
        self.submit(done.set)
        if not done.wait(timeout):
            say("does not answer: what is not logged yet is left out")
        return done.is_set()

    def _work(self) -> None:
        while True:
            action = self._queue.get()
            try:
                action()
            except Exception as error:  # whatever it is: training is worth more
                if type(error).__name__ not in self._said:
                    say(f"failed, training goes on: {type(error).__name__}: {error}")
                self._said.add(type(error).__name__)


def start(name: str | None) -> None:
    """Begin the run, or take it up; offline if W&B does not answer in time."""
    import wandb

    if wandb.run is not None:
        return
    given: dict[str, Any] = {key: value for key, value in TIMEOUTS.items() if f"WANDB_{key.upper()}" not in os.environ}
    settings = wandb.Settings(**given)
    try:
        wandb.init(name=name, settings=settings)
    except Exception as error:  # not reachable, no login, a server error: all the same for training
        wandb.teardown()  # else the id counts as in use
        run = wandb.init(name=name, mode="offline", settings=settings)
        say(f"cannot be reached ({error}): logging offline; upload it later: wandb sync {run.settings.sync_dir}")


def describe(record: dict[str, Any]) -> None:
    """The record into the run's config."""
    import wandb

    wandb.config.update({"packhaul": record}, allow_val_change=True)


def log_report(record: dict[str, Any]) -> None:
    """The data report as an artifact."""
    import wandb

    files = [Path(record["data"]) / name for name in REPORT_FILES]
    if not all(file.exists() for file in files):
        return
    artifact = wandb.Artifact("data-report", type="data-report", metadata={"manifest": record["manifest_sha256"]})
    for file in files:
        artifact.add_file(str(file))
    wandb.log_artifact(artifact)


def log_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Rows with the same keys, at the step that the first names."""
    import wandb

    table = wandb.Table(columns=[*rows[0]], data=[list(row.values()) for row in rows])
    wandb.log({name: table, "train/global_step": rows[0]["step"]})


def say(message: str) -> None:
    """A line that is seen."""
    print(f"W&B {message}", file=sys.stderr, flush=True)
