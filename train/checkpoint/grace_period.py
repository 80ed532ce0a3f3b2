"""Whether a checkpoint can be saved within the grace period: between a signal and the end of the job."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import TYPE_CHECKING

from train.checkpoint.folders import Checkpoint, run_dir_of
from train.checkpoint.size_estimates import estimate_seconds, largest_part

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

log = logging.getLogger(__name__)

SECONDS = "PACKHAUL_SIGNAL_SECONDS"  # the variable that holds the grace period; set by slurm/env.sh


class GracePeriodCheck:
    """Reports when a save would not fit in the grace period: once, until one fits again."""

    def __init__(self, trainer: CheckpointedTrainer):
        self._trainer = trainer
        self._longest_step = 0.0  # seconds from a signal to the end of the step that sees it
        self._begun: float | None = None  # when a signal was last too late for the step before
        self._problem: str | None = None  # reported already

    def check_at_start(self, resumed: Checkpoint | None) -> None:
        """Before a save is measured: by the time of the last attempt's, or by an estimate."""
        args = self._trainer.args
        if SECONDS not in os.environ or args.process_index:
            return
        seconds = resumed.extra.get("save_seconds") if resumed else None
        if seconds is None:
            seconds = estimate_seconds(largest_part(self._trainer), run_dir_of(args))
        self.check(seconds)

    def end_step(self) -> None:
        """Measure a step, at its end."""
        now = time.perf_counter()
        if self._begun is not None:
            self._longest_step = max(self._longest_step, now - self._begun)
        self._begun = self._trainer.guard.asked_at or now  # a signal after that is seen by the next step

    def check(self, save_seconds: float) -> None:
        """Compare the longest step and a save of `save_seconds` with the grace period."""
        problem = grace_period_problem(self._longest_step, save_seconds)
        if problem and not self._problem:
            log.warning(problem)
        self._problem = problem


def grace_period_problem(step_seconds: float, save_seconds: float) -> str | None:
    """Why a save would not fit in the grace period, or None.

    Args:
        step_seconds: the longest time so far from a signal to the end of the step that sees it: a step and, in several
            processes, what comes after the last forward of the step before.
        save_seconds: from the begin of a save to its publication.
    """
    grace_period = os.environ.get(SECONDS, "")
    if not grace_period.isdigit():
        return None
    needed = step_seconds + save_seconds
    if needed <= int(grace_period):
        return None
    return (
        f"a preemption would lose steps: the step that sees a signal ends up to {step_seconds:.0f} s after it and a "
        f"save takes {save_seconds:.0f} s, the signal comes {grace_period} s before the end: set {SECONDS} to "
        f"{math.ceil(needed * 1.5)} or more in slurm/env.sh"
    )
