"""Logging to Weights & Biases: one run over all resumes, and training goes on whatever happens to W&B.

transformers' own callback logs, here in a thread of its own, so that the training loop waits for nothing and sees no
exception. The run goes on offline if W&B does not answer at the start. Mode, project, entity, tags, notes
and timeouts are W&B's own environment variables (WANDB_MODE, WANDB_PROJECT, WANDB_TAGS, WANDB_NOTES, ...).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.loop.wandb_worker import Worker
from train.run import ending

if TYPE_CHECKING:
    from transformers import Trainer

log = logging.getLogger(__name__)

# Seconds; W&B's own are 90 and endless. It may use up the first two or three times.
TIMEOUTS = {"init_timeout": 20.0, "finish_timeout": 6.0}
# Seconds that the end of a run waits beyond finish_timeout, by our own clock. W&B counts finish_timeout only from where
# its process comes to the end of the run, and a request before that, which it repeats, can put that off for hours.
# Together they leave time to end W&B's process by force within train.run.ending.LIMIT.
MARGIN = 8.0
HURRIED = 4.0  # seconds in all, after a signal: a grace period is running
LEAST = 2.0  # seconds that each wait gets, even when the patience is used up
FLUSH = 2.0  # seconds until W&B's file holds what was logged; W&B's own are 15, and an end by force loses the rest
REPORT_FILES = ("report.json", "report.html")

_runs: list[Any] = []  # the callbacks with a W&B run in this process, until `end`


def use_safe_wandb(trainer: Trainer, record: dict[str, Any]) -> None:
    """Put our callback in the place of transformers'."""
    from transformers.integrations import WandbCallback

    trainer.remove_callback(WandbCallback)
    trainer.add_callback(make_wandb_callback(record))
    for action in (_missing, kill_service):
        if action not in ending.by_force:
            ending.by_force.append(action)


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
            self._unfinished: list[str] = []  # uploads that W&B does not have yet
            self._folder: str | None = None  # of an online run, once it ends
            self._is_over = False  # W&B has everything, or it was said what it lacks
            self._patience = Patience(finish_timeout() + MARGIN)

        def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
            self._initialized = True
            if state.is_world_process_zero:
                base = super().setup
                _runs.append(self)
                self._worker.submit(lambda: start(args.run_name, self._worker))
                self._worker.submit(lambda: base(args, state, model, **kwargs))
                self._worker.submit(lambda: describe(record))
                self._upload("data report", lambda: log_report(record))

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
            if self._log_model.is_enabled:  # it reads the model, which is written next
                self._settle()

        def log_samples(self, rows: list[dict[str, Any]]) -> None:
            """A table of answers to held-out prompts; called by the first process."""
            self._upload(f"samples of step {rows[0]['step']}", lambda: log_table("samples", rows))

        def end(self, exit_code: int, hurried: bool = False) -> None:
            """Finish the run, and wait no longer than the patience lasts. Without an answer by then, W&B's process is
            killed: what was logged is in its file, and whoever still waits for it goes on without it, offline."""
            if hurried:
                self._patience.left = min(self._patience.left, HURRIED)
            settled = self._settle()
            self._folder = online_folder()  # only here: the run may have started only now
            if not (settled and self._finish(exit_code)):
                kill_service()
                self._finish(exit_code)
                if missing := self.missing():
                    log.warning(missing)
            self._is_over = True
            self._worker.close()
            self._uploads.close()

        def _settle(self) -> bool:
            """Whether all but uploads is done; these may take half the patience, so that there is time to finish."""
            self._patience.keep_back = self._patience.whole / 2
            settled = self._patience.wait(self._worker.done()) and (self._patience.wait(self._uploads.done()) or True)
            self._patience.keep_back = 0.0
            return settled

        def _finish(self, exit_code: int) -> bool:
            """Whether W&B has taken everything."""
            finished: list[bool] = []
            self._worker.submit(lambda: finished.append(finish(exit_code)))
            return self._patience.wait(self._worker.done()) and finished == [True]

        def missing(self) -> str | None:
            """What W&B has not taken, and how to upload it; None if it has all, or the run was offline."""
            folder = self._folder or online_folder()
            if self._is_over or folder is None:
                return None
            names = ", ".join(dict.fromkeys(self._unfinished))
            missing = f"Not on disk: {names}. " if names else ""
            return (
                f"W&B has not taken everything within {self._patience.whole:.0f} s. What was logged is on disk; "
                f"upload it later: wandb sync {folder}. "
                + missing
                + "To wait longer at the end of a run, set WANDB_FINISH_TIMEOUT (seconds; 0: without end)"
            )

        def _upload(self, name: str, action: Callable[[], None]) -> None:
            """Once what was asked before, such as the start, is done."""

            def upload() -> None:
                action()
                self._unfinished.remove(name)

            self._unfinished.append(name)
            self._worker.submit(lambda: self._uploads.submit(upload))

    return SafeWandbCallback()


def end(exit_code: int, hurried: bool = False) -> None:
    """The end of this process's W&B run, if it has one, in bounded time.

    Args:
        hurried: a signal has come, and a grace period is running.
    """
    while _runs:
        _runs[-1].end(exit_code, hurried)
        _runs.pop()


def _missing() -> str | None:
    """What W&B has not taken, while the end of its run is waited for."""
    return _runs[-1].missing() if _runs else None


def longest_end() -> float:
    """Seconds that the environment gives the end of this process's W&B run, where it says so; else 0."""
    return finish_timeout() + MARGIN if _runs and "WANDB_FINISH_TIMEOUT" in os.environ else 0.0


def finish_timeout() -> float:
    """Seconds that W&B itself waits at the end of a run; endless where the environment says 0."""
    return float(os.environ.get("WANDB_FINISH_TIMEOUT", TIMEOUTS["finish_timeout"])) or math.inf


class Patience:
    """Seconds that are left to wait, over several waits; each gets at least LEAST."""

    def __init__(self, seconds: float):
        self.whole = self.left = seconds
        self.keep_back = 0.0  # seconds that a wait leaves for the next ones

    def wait(self, event: threading.Event) -> bool:
        """Whether it came in time."""
        begun = time.monotonic()
        seconds = max(self.left - self.keep_back, LEAST)
        came = event.wait(min(seconds, threading.TIMEOUT_MAX))
        self.left -= time.monotonic() - begun
        return came


def start(name: str | None, worker: Worker) -> None:
    """Start or resume the run; offline if W&B does not answer in time, unless the worker is closed by then."""
    import wandb

    if wandb.run is not None:
        return
    given: dict[str, Any] = {key: value for key, value in TIMEOUTS.items() if f"WANDB_{key.upper()}" not in os.environ}
    given |= {"finish_timeout_raises": True}
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
        given["x_transaction_log_flush_interval"] = FLUSH
    settings = wandb.Settings(**given)
    try:
        wandb.init(name=name, settings=settings)
    except Exception as error:  # not reachable, no login, a server error: all the same for training
        if worker.closed:
            return
        with contextlib.suppress(Exception):  # W&B's process may be gone
            wandb.teardown()  # else the id counts as in use
        run = wandb.init(name=name, mode="offline", settings=settings)
        if worker.closed:  # too late: nothing will be logged
            finish(1)
            return
        log.warning(
            f"W&B cannot be reached ({error}): logging offline; upload it later: wandb sync {run.settings.sync_dir}"
        )


def online_folder() -> str | None:
    """Where an online run keeps what was logged; None without such a run."""
    import wandb

    return wandb.run.settings.sync_dir if wandb.run and not wandb.run.settings._offline else None


def finish(exit_code: int) -> bool:
    """End the run and W&B's process; whether it has taken everything."""
    import wandb

    try:
        wandb.finish(exit_code)
        return True
    except Exception:  # W&B gave up after finish_timeout, or its process is gone
        return False
    finally:
        with contextlib.suppress(Exception, SystemExit):  # it exits as its process did
            wandb.teardown(exit_code)


def kill_service() -> None:
    """End W&B's process by force: whoever waits for its answer gets an error instead."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            if child.name().startswith("wandb-"):
                child.kill()


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
