"""A process that waits for ever says where it is, and what ends the wait is put into words."""

from __future__ import annotations

import faulthandler
import socket
import sys
import threading
import time
from typing import Any

_LOST = {
    "timed out": "a process has not answered within ddp_timeout",
    "timeout": "a process has not answered within ddp_timeout",
    "connection closed by peer": "another process has ended",
    "connection reset by peer": "another process has ended",
}


_watching: list[Watchdog] = []  # the one that watches this process, while it trains
_PATIENCE = 1.25  # times ddp_timeout: the libraries' own error comes first, where there is one


def explain(error: RuntimeError) -> str | None:
    """What an error of a collective operation means, or None for any other error."""
    text = str(error)
    meaning = next((words for sign, words in _LOST.items() if sign in text.lower()), None)
    if meaning is None:
        return None
    return (
        f"{meaning}: the log of the one that says nothing of the kind, or ends first, has the reason. The same command "
        f"goes on from the newest complete checkpoint. ({text.splitlines()[0][:300]})"
    )


def make_callback(args: Any) -> Any:
    """The callback that starts the watch and beats at every sign of progress."""
    from transformers import TrainerCallback

    watchdog = Watchdog(args.ddp_timeout / 2, args.process_index, args.ddp_timeout)
    _watching.append(watchdog)

    class WatchdogCallback(TrainerCallback):
        """Micro-batches, evaluation batches and saves are progress too."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watchdog.beat(state.global_step)
            watchdog.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watchdog.beat(state.global_step)

        on_substep_end = on_prediction_step = on_save = on_step_end

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watchdog.stop()
            _watching.clear()

    return WatchdogCallback()


def progress() -> None:
    """Something has gone on that is neither a step nor a batch: an answer to a prompt, a file of a checkpoint."""
    for watchdog in _watching:
        if watchdog.is_alive():
            watchdog.beat(watchdog.step)


def end_watch() -> None:
    """Nothing ends this process any more."""
    _watching.clear()
    faulthandler.cancel_dump_traceback_later()


class Watchdog(threading.Thread):
    """Writes all threads' stacks to stderr when nothing has gone on for `limit` seconds; once for each such wait."""

    def __init__(self, limit: float, process_index: int, timeout: float):
        super().__init__(name="watchdog", daemon=True)
        self.limit, self.process_index, self.timeout = limit, process_index, timeout
        self.step, self.last, self.said = 0, time.monotonic(), False
        self._stopped = threading.Event()

    def beat(self, step: int) -> None:
        """Something has gone on."""
        self.step, self.last, self.said = step, time.monotonic(), False
        # Ends the process even where an operation without a time limit of its own does not let Python run.
        faulthandler.dump_traceback_later(self.timeout * _PATIENCE, exit=True, file=sys.__stderr__ or sys.stderr)

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self._stopped.set()
        end_watch()

    def run(self) -> None:
        """Look every now and then."""
        while not self._stopped.wait(min(self.limit / 4, 10)):
            waited = time.monotonic() - self.last
            if waited > self.limit and not self.said:
                self.said = True
                self._say(waited)

    def _say(self, waited: float) -> None:
        print(
            f"sft: WARNING: process {self.process_index} on {socket.gethostname()} has gone on with nothing for "
            f"{waited:.0f} s (last finished: step {self.step}). Processes that wait for another are ended after "
            f"{self.timeout:.0f} s (ddp_timeout). Where this one is:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
