"""Notes in the record of this start (train.run.starts): when its first step is done, and how far it has come."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from train.run import starts


class StartNotes(TrainerCallback):
    """On the first process; the others have no record."""

    def __init__(self) -> None:
        self._began = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note it."""
        if self._began:
            starts.step_done(state.global_step)
        else:
            starts.first_step(state.global_step)
        self._began = True
