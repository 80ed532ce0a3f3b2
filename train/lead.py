"""Whether a checkpoint would be saved between the signal of a preemption and the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from train.checkpoint import Checkpoint
from train.preemption import LEAD, lead_problem
from train.save_parts import estimate_seconds, largest_part


class LeadCheck:
    """Part of `train.saving.CheckpointSaving`."""

    longest_step: float = 0.0  # seconds
    _resumed: Checkpoint | None = None
    _lead_problem: str | None = None  # said already
    args: Any
    model: Any
    is_deepspeed_enabled: bool
    say: Any

    def check_lead_at_start(self) -> None:
        """Before a save was measured: by the time of the last attempt's, or by an estimate."""
        if LEAD not in os.environ or self.args.process_index:
            return
        seconds = self._resumed.extra.get("save_seconds") if self._resumed else None
        if seconds is None:
            size = largest_part(self.model, self.args, self.is_deepspeed_enabled)
            seconds = estimate_seconds(size, Path(self.args.output_dir))
        self.check_lead(seconds)

    def check_lead(self, save_seconds: float) -> None:
        """Say, once, if a save would not fit between the signal of a preemption and the end."""
        problem = lead_problem(self.longest_step, save_seconds)
        if problem and not self._lead_problem:
            self.say(f"WARNING: {problem}")
        self._lead_problem = problem
