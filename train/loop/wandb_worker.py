"""The thread that talks to W&B, so that training waits for nothing and sees no exception."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Worker:
    """Does things one after the other in a thread of its own. A failure is reported once for each kind of error."""

    def __init__(self) -> None:
        self.closed = False  # whether the rest is left undone
        self._queue: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._reported: set[str] = set()
        self._thread = threading.Thread(target=self._work, daemon=True, name="wandb worker")
        self._thread.start()

    def submit(self, action: Callable[[], Any]) -> None:
        """Returns at once."""
        self._queue.put(action)

    def close(self) -> None:
        """Leave the rest undone; what is being done is not waited for."""
        self.closed = True
        self.submit(lambda: None)  # wakes it

    def join(self) -> None:
        """Wait until a closed worker is gone."""
        self._thread.join()

    def done(self) -> threading.Event:
        """Set when all that was submitted so far is done."""
        event = threading.Event()
        self.submit(event.set)
        return event

    def _work(self) -> None:
        while True:
            action = self._queue.get()
            if self.closed:
                return
            try:
                action()
            except Exception as error:  # whatever it is: training is worth more
                if type(error).__name__ not in self._reported:
                    log.warning(f"W&B failed, training goes on: {type(error).__name__}: {error}")
                self._reported.add(type(error).__name__)
