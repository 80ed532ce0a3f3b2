"""The callback that saves and stops after the step in which any rank got a signal.

A file of its own, so that the handlers of train.run.preemption need not wait for transformers.
"""

from __future__ import annotations

import logging
import signal
from typing import Any

from transformers import TrainerCallback

from train.run.distributed import all_reduce_max, gather
from train.run.preemption import Signals

log = logging.getLogger(__name__)


class PreemptionCallback(TrainerCallback):
    """Lets all ranks agree. A signal that comes after a step's last forward is seen in the next step; one rank alone
    looks at the end of a step.

    Attributes:
        agreed: whether all ranks have agreed to save and stop.
        interrupted: whether one of them got Ctrl-C.
        told: what the guard's reduction said in this step; None: nothing, so all ranks are asked here.
    """

    def __init__(self, signals: Signals):
        self.signals = signals
        self.agreed = self.interrupted = False
        self.told: bool | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on there is something to save."""
        self.signals.stepping = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Agree, and say why training stops."""
        told, self.told = self.told, None
        if told is None:
            told = all_reduce_max(self.signals.first() is not None, args.device)
        if not told:
            return
        self.agreed = True
        name = self.signals.first() or "signal on another process"
        log.info(f"{name}: saving after step {state.global_step}")
        control.should_save = True
        control.should_training_stop = True

    def agree_on_interrupt(self) -> None:
        """Let all ranks know whether one of them got Ctrl-C. Every rank must call it, once they have agreed to stop."""
        self.interrupted = signal.SIGINT.name in gather(self.signals.first())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer ends the epoch when it stops in its middle: no evaluation and no second save belong there."""
        if self.agreed and not float(state.epoch).is_integer():
            control.should_log = control.should_evaluate = control.should_save = False
