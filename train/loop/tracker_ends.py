"""The end of training of other trackers (TensorBoard, MLflow, ...), put off until the model is saved.

transformers calls it before the final model is written. A server that does not answer there would keep all ranks, and
the model would never be saved. At the end of the process train.run.ending bounds it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from train.run import ending

log = logging.getLogger(__name__)

_ends: list[tuple[str, Callable[[], Any]]] = []  # by the tracker's name


def put_off(trainer: Any) -> None:
    """Let the trackers' `on_train_end` wait for `end`."""
    _ends.clear()
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            _put_off(callback)


def _put_off(callback: Any) -> None:
    original = callback.on_train_end

    def later(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        then = copy.copy(state)
        _ends.append((type(callback).__name__, lambda: original(args, then, control, **kwargs)))

    callback.on_train_end = later


def end() -> None:
    """Do what was put off. Whatever a tracker raises, the model is saved."""
    ending.by_force.append(_describe_hang)
    while _ends:
        name, action = _ends[0]
        try:
            action()
        except Exception as error:
            log.warning(f"{name} failed at the end of training: {type(error).__name__}: {error}")
        _ends.pop(0)
    ending.by_force.remove(_describe_hang)


def _describe_hang() -> str | None:
    """Which tracker has not come back."""
    return f"{_ends[0][0]} has not ended: its last values may not be uploaded" if _ends else None
