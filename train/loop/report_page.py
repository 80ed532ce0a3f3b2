"""Writes report.html into the run directory at each evaluation, so that it can be opened while the run trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from train.run.atomic_files import write_text_atomically
from train.run_report.page import render
from train.run_report.run_files import read_run

log = logging.getLogger(__name__)

FILE = "report.html"
READ = ("log_history", "global_step", "max_steps", "best_model_checkpoint")  # of the trainer's state


class ReportPage(TrainerCallback):
    """On the first process. A page that cannot be written is a warning."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it anew."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / FILE
        try:
            now = {name: getattr(state, name) for name in READ}
            write_text_atomically(path, render([read_run(path.parent, now)]))
        except Exception as error:  # whatever it is: a page is no reason to end a run
            log.warning(f"{path} is not written: {type(error).__name__}: {error}")
