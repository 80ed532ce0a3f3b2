"""report.html of one run or several: one file without scripts or links, filled from what the runs have logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.run_report.curves import Curve, chart
from train.run_report.run_files import Run

COLOURS = 8
ANSWERS = 6  # of a prompt, the newest ones
SPEED = {
    "grad_norm": "Gradient norm before clipping",
    "learning_rate": "Learning rate",
    "tokens_per_second_per_gpu": "Tokens a second and GPU",
    "mfu": "MFU",
    "step_seconds": "Seconds a step",
    "data_wait_share": "Share of the time waiting for data",
    "memory_peak_gib": "Peak memory of the fullest device, GiB",
    "slowdown": "Slowest rank, times the median",
}
HIDDEN = ("output_dir", "run_name", "logging_dir")  # differ between any two runs


def render(runs: list[Run]) -> str:
    """The page; everything that comes from a run is escaped by the template engine."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(figure=figure)
    template = environment.from_string(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    first = runs[0]
    return template.render(
        runs=[summary(run, i) for i, run in enumerate(runs)],
        title=", ".join(run.name for run in runs),
        losses=loss_charts(runs),
        speeds=[made for name, title in SPEED.items() if (made := metric_chart(runs, name, title))],
        evaluations=evaluations(first) if len(runs) == 1 else [],
        sources=first.sources,
        options=options(runs),
        samples=answers(first) if len(runs) == 1 else [],
        bad_steps=first.bad_steps if len(runs) == 1 else [],
    )


def summary(run: Run, index: int) -> dict[str, Any]:
    """What a run is and where it stands."""
    last = {key: value for entry in run.history for key, value in entry.items()}
    state = f"finished after {run.step:,} steps" if run.finished else f"at step {run.step:,} of {run.max_steps:,}"
    return {
        "name": run.name,
        "colour": colour(2 * index),  # as in the charts
        "state": state,
        "path": str(run.path),
        "model": run.record.get("model_name_or_path"),
        "data": run.record.get("data"),
        "manifest": str(run.record.get("manifest_sha256") or "")[:12],
        "commit": str(run.record.get("git_commit") or "")[:12],
        "world_size": run.record.get("world_size"),
        "last": last,
        "checkpoints": [(step, f"{size / 2**20:,.0f} MiB", f"checkpoint-{step}" == run.best)
                        for step, size in run.checkpoints],
    }  # fmt: skip


def colour(index: int) -> int:
    """1 to COLOURS, again from the first."""
    return index % COLOURS + 1


def loss_charts(runs: list[Run]) -> list[dict[str, Any]]:
    """The loss over all tokens, and that of each source: trained, held out, and the base model's level."""
    names = ["", *dict.fromkeys(name for run in runs for name in run.sources)]
    if len(names) == 2:
        names = [""]  # one source is all there is
    made = (loss_chart(runs, name) for name in names)
    return [one for one in made if one]


def loss_chart(runs: list[Run], source: str) -> dict[str, Any] | None:
    """Of one source; empty: of all."""
    trained, held_out = (f"loss_{source}", f"eval_{source}_loss") if source else ("loss", "eval_loss")
    curves = []
    for i, run in enumerate(runs):
        prefix, lighter = f"{run.name}: " if len(runs) > 1 else "", colour(2 * i + 1)
        curves.append(Curve(name=f"{prefix}trained", points=run.series(trained), colour=colour(2 * i)))
        curves.append(Curve(name=f"{prefix}held out", points=run.series(held_out), colour=lighter, dots=True))
        base = (run.record.get("baseline") or {}).get(held_out)
        if base is not None:
            level = [(0, base), (run.max_steps, base)]
            curves.append(
                Curve(name=f"{prefix}base model, held out", points=level, colour=colour(2 * i + 1), dashed=True)
            )
    return chart(f"Loss: {source}" if source else "Loss", curves, last_step(runs))


def metric_chart(runs: list[Run], name: str, title: str) -> dict[str, Any] | None:
    """Of one metric of the steps."""
    curves = [Curve(name=run.name, points=run.series(name), colour=colour(2 * i)) for i, run in enumerate(runs)]
    return chart(title, curves, last_step(runs), zero=True)


def last_step(runs: list[Run]) -> int:
    """The right end of all charts."""
    return max(max(run.max_steps, run.step) for run in runs)


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Of each: step, loss, its change, and by source."""
    found = []
    for entry in run.history:
        if "eval_loss" not in entry:
            continue
        by_source = [(entry.get(f"eval_{name}_loss"), entry.get(f"eval_{name}_loss_change")) for name in run.sources]
        accuracy = entry.get("eval_token_accuracy")
        row = {"step": entry["step"], "loss": entry["eval_loss"], "change": entry.get("eval_loss_change")}
        found.append({**row, "accuracy": accuracy, "sources": by_source if len(run.sources) > 1 else []})
    return found


def options(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """(name, value in each run): all of one run, those that differ of several."""
    given = [run.record.get("options", {}) for run in runs]
    names = sorted({name for one in given for name in one})
    rows = [(name, [str(one[name]) if name in one else "–" for one in given]) for name in names]
    if len(runs) == 1:
        return rows
    return [(name, values) for name, values in rows if len(set(values)) > 1 and name not in HIDDEN]


def answers(run: Run) -> list[dict[str, Any]]:
    """Each held-out prompt with its answers over time, and the reference."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in run.samples:
        key = str(sample.get("source")), str(sample.get("prompt"))
        one = found.setdefault(
            key, {"source": key[0], "prompt": key[1], "reference": sample.get("reference"), "all": []}
        )
        one["all"].append((sample.get("step"), sample.get("answer")))
    return [{**one, "all": one["all"][-ANSWERS:]} for one in found.values()]


def figure(value: Any) -> str:
    """A number for people."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
