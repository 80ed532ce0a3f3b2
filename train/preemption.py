"""Preemption: a signal sets a flag, all processes agree at the end of a step, save, and stop with exit code 0.

The handler only sets the flag. Signals do not reach all processes in the same step, so at the end of each step the flag
is reduced over all of them: every process saves after the same step, or none does. When the checkpoint is published,
`preempted.json` in the run directory tells the batch script that the job may be requeued; it is removed at the next
start. (A launcher turns other exit codes into 1, hence a file and not a code.)
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from train.checkpoint import write_json_atomically

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
MARKER = "preempted.json"
LEAD = "PACKHAUL_SIGNAL_SECONDS"  # set by slurm/env.sh

_received: list[str] = []  # names of the signals that came; only the handler appends


def install_handlers() -> None:
    """Take the signals from now on. Called before the slow imports: an unhandled USR1 would end the process."""
    for number in SIGNALS:
        signal.signal(number, _note)


def received() -> str | None:
    """The first signal that came, if any."""
    return _received[0] if _received else None


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)


def mark(run_dir: Path, step: int) -> None:
    """Tell the batch script that the state after `step` is saved and the job may go on later."""
    write_json_atomically(run_dir / MARKER, {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def unmark(run_dir: Path) -> None:
    """Remove the mark of the attempt before."""
    (run_dir / MARKER).unlink(missing_ok=True)


def lead_problem(step_seconds: float, save_seconds: float) -> str | None:
    """Why a save would not fit between the signal and the end, or None.

    Args:
        step_seconds: the longest step so far, which may just have begun when the signal comes.
        save_seconds: from the begin of a save to its publication.
    """
    lead = os.environ.get(LEAD, "")
    if not lead.isdigit():
        return None
    needed = step_seconds + save_seconds
    if needed <= int(lead):
        return None
    return (
        f"a preemption would lose steps: a step takes up to {step_seconds:.0f} s and a save {save_seconds:.0f} s, the "
        f"signal comes {lead} s before the end: set {LEAD} to {math.ceil(needed * 1.5)} or more in slurm/env.sh"
    )


def make_callback() -> Any:
    """The callback that lets all processes agree; made late, so that the handlers need not wait for transformers."""
    from transformers import TrainerCallback

    from train.trainer import all_reduce_max, is_main

    class PreemptionCallback(TrainerCallback):
        """Saves and stops after the step in which any process got a signal."""

        agreed = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not all_reduce_max(received() is not None, args.device):
                return
            self.agreed = True
            if is_main(args):
                print(f"{received() or 'signal on another process'}: saving after step {state.global_step}", flush=True)
            control.should_save = True
            control.should_training_stop = True

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The Trainer ends the epoch when it stops in its middle: no evaluation and no second save belong there."""
            if self.agreed and not float(state.epoch).is_integer():
                control.should_log = control.should_evaluate = control.should_save = False

    return PreemptionCallback()
