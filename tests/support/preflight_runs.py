"""The problems that the preflight check finds in a run."""

from __future__ import annotations

from pathlib import Path

from train.config.run_config import load_run_config
from train.preflight import check

CPU = ["--use_cpu", "--bf16", "false"]


def problems(flags: list[str], *more: str, launch: Path | None = None, world_size: int | None = None) -> str:
    """All problems of a run, one a line.

    Args:
        flags, more: the run's flags.
        launch: the accelerate YAML.
    """
    return "\n".join(check(load_run_config([*flags, *more]), accelerate_config=launch, world_size=world_size))
