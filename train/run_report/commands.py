"""Every command to make a run again, and to go on from it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from train.run_report.run_files import Run


def commands(run: Run) -> dict[str, Any]:
    """What the template shows.

    Returns:
        prepared, trained, after: lines for a shell; started: the command that started the run, as its newest start has
        noted it, or None; options: those that were given, as the lines of a run config.
    """
    data, folder = _word(run.record.get("data")), _word(run.path)
    started = next((start["command"] for start in reversed(run.starts) if start.get("command")), None)
    return {
        "prepared": [f"packhaul prepare --recipe recipe.yaml --output {data}", f"packhaul inspect {data}"],
        "started": started,
        "trained": ["packhaul preflight --config run.yaml", _train(started, run.record.get("world_size") or 1)],
        "after": _after(run, folder, data),
        "options": run_yaml(run.record),
    }


def _train(started: str | None, processes: int) -> str:
    """With the launch file that the run was started with, where its command names one."""
    if processes == 1:
        return "packhaul train --config run.yaml"
    words = shlex.split(started or "")
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--config_file", "--launch")]
    launch = _word(named[0] if named else "LAUNCH")
    return f"packhaul train --launch {launch} --num_processes {processes} --config run.yaml"


def _after(run: Run, folder: str, data: str) -> list[str]:
    export = _word(f"{run.path}-export")
    base = _word(run.record.get("model_name_or_path"))
    scores = [_word(f"{run.path}-export/scores-eval{name}.jsonl") for name in ("-base", "")]
    return [
        f"packhaul export --checkpoint {folder} --output {export}",
        f"packhaul score {base} {data} --output {scores[0]}",
        f"packhaul score {export} {data} --output {scores[1]}",
        f"packhaul report {folder} --scores {' '.join(scores)}",
    ]


def run_yaml(record: dict[str, Any]) -> str:
    """The options that were given, as a run config."""
    given = {**(record.get("own_options") or {}), **(record.get("options") or {})}
    given = {"data": record.get("data"), **given}
    return as_yaml(given)


def as_yaml(content: dict[str, Any]) -> str:
    """For a file."""
    import yaml

    return str(yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=100))


def _word(value: Any) -> str:
    return shlex.quote(str(Path(value) if isinstance(value, Path) else value))
