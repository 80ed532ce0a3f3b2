"""The best checkpoint that there is: of those saved, the one whose own evaluation was the best.

The Trainer remembers the best evaluation. Where it evaluates more often than it saves, there may be no checkpoint of
that step; it then keeps and loads an earlier one, however bad.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.checkpoint.folders import named_folders, step_of


def best_saved(args: Any, state: Any, run_dir: Path) -> str | None:
    """Its folder; that of the step being saved counts as well. What the state says where none was evaluated.

    Args:
        args: with metric_for_best_model and greater_is_better.
        state: of the trainer, with the log.
    """
    asked = args.metric_for_best_model or ""
    name = asked if asked.startswith("eval_") else f"eval_{asked}"
    measured = {entry["step"]: entry[name] for entry in state.log_history if name in entry}
    saved = {state.global_step, *(step_of(folder) for folder in named_folders(run_dir))}
    steps = sorted(step for step in measured.keys() & saved if measured[step] == measured[step])  # not NaN
    if not steps:
        known: str | None = state.best_model_checkpoint
        return known
    best = (max if args.greater_is_better else min)(steps, key=measured.__getitem__)
    return str(run_dir / f"checkpoint-{best}")
