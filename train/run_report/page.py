"""report.html of one run or several: one file without scripts or links, filled from what the runs have logged."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from train.run_report.answers import answers, words
from train.run_report.commands import commands
from train.run_report.curves import Curve, chart
from train.run_report.mixture import mixture
from train.run_report.restarts import duration, restarts
from train.run_report.run_files import Run

COLOURS = 8
MOST_EVALUATIONS = 40
BAD_DOCUMENTS = 10  # of a bad step, those with the highest losses
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
# Control characters, and marks that turn the direction of writing; joiners stay, as emoji and Persian need them.
_INVISIBLE: dict[int, str] = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_INVISIBLE |= {
    code: f"⟨U+{code:04X}⟩" for code in (0x7F, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
}


def render(runs: list[Run], scores: dict[str, Any] | None = None) -> str:
    """The page; everything that comes from a run is escaped by the template engine.

    Args:
        scores: of train.run_report.scores, for one run.
    """
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    environment.filters.update(figure=figure, duration=duration, percent=percent, card=card, words=words)
    alone = runs[0] if len(runs) == 1 else None
    evaluated = evaluations(alone) if alone else last_evaluations(runs)
    page = environment.get_template("template.html").render(
        runs=[summary(run, i) for i, run in enumerate(runs)],
        title=", ".join(run.name for run in runs),
        losses=loss_charts(runs),
        marked=bool(marks(runs)),
        speeds=[made for name, title in SPEED.items() if (made := metric_chart(runs, name, title))],
        evaluations=few(evaluated),
        thinned=len(evaluated) if len(evaluated) > MOST_EVALUATIONS else 0,
        sources=list(dict.fromkeys(name for run in runs for name in run.sources)),
        options=options(runs),
        samples=answers(alone.samples) if alone else [],
        bad_steps=[bad_step(bad) for bad in alone.bad_steps] if alone else [],
        scores=scores,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8").translate(_INVISIBLE)


def summary(run: Run, index: int) -> dict[str, Any]:
    """What a run is and where it stands."""
    last = {key: value for entry in run.history for key, value in entry.items()}
    state = f"finished after {run.step:,} steps" if run.finished else f"at step {run.step:,} of {run.max_steps:,}"
    return {
        "name": run.name,
        "colour": colour(2 * index),  # as in the charts
        "state": state,
        "finished": run.finished,
        "path": str(run.path),
        "quoted": shlex.quote(str(run.path)),
        "model": run.record.get("model_name_or_path"),
        "data": run.record.get("data"),
        "manifest": str(run.record.get("manifest_sha256") or "")[:12],
        "commit": str(run.record.get("git_commit") or "")[:12],
        "world_size": run.record.get("world_size"),
        "last": last,
        "checkpoints": [(step, size_text(size), f"checkpoint-{step}" == run.best)
                        for step, size in run.checkpoints],
        "restarts": restarts(run.starts),
        "mixture": mixture(run.record),
        "environment": run.environment,
        "commands": commands(run),
        "problems": run.problems,
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
    return chart(f"Loss: {source}" if source else "Loss", curves, last_step(runs), marks=marks(runs))


def metric_chart(runs: list[Run], name: str, title: str) -> dict[str, Any] | None:
    """Of one metric of the steps."""
    names = [run.name for run in runs] if len(runs) > 1 else ["last"]
    curves = [Curve(name=names[i], points=run.series(name), colour=colour(2 * i)) for i, run in enumerate(runs)]
    return chart(title, curves, last_step(runs), zero=True, marks=marks(runs))


def last_step(runs: list[Run]) -> int:
    """The right end of all charts."""
    return max(max(run.max_steps, run.step) for run in runs)


def marks(runs: list[Run]) -> list[int]:
    """Steps that one run went on from; of several none, as nobody could tell whose they are."""
    if len(runs) > 1:
        return []
    return sorted({step for start in runs[0].starts[1:] if (step := start.get("from_step"))})


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Of each: step, loss, its change, and by source."""
    return [_evaluation(entry, run.sources) for entry in run.history if "eval_loss" in entry]


def few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MOST_EVALUATIONS, at equal distances, the last one among them."""
    every = -(-len(rows) // MOST_EVALUATIONS)
    return rows[(len(rows) - 1) % every :: every] if every > 1 else rows


def last_evaluations(runs: list[Run]) -> list[dict[str, Any]]:
    """Of each run that was evaluated: the last one, with the run's name; by the sources of all runs."""
    sources = list(dict.fromkeys(name for run in runs for name in run.sources))
    found = []
    for run in runs:
        entries = [entry for entry in run.history if "eval_loss" in entry]
        found += [{**_evaluation(entry, sources), "run": run.name} for entry in entries[-1:]]
    return found


def _evaluation(entry: dict[str, Any], sources: list[str]) -> dict[str, Any]:
    by_source = [(entry.get(f"eval_{name}_loss"), entry.get(f"eval_{name}_loss_change")) for name in sources]
    row = {"step": entry["step"], "loss": entry["eval_loss"], "change": entry.get("eval_loss_change")}
    accuracy = entry.get("eval_token_accuracy")
    return {**row, "accuracy": accuracy, "sources": by_source if len(sources) > 1 else []}


def options(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """(name, value in each run): all of one run; of several what differs, what they are made from included."""
    given = [_given(run, facts=len(runs) > 1) for run in runs]
    names = sorted({name for one in given for name in one})
    rows = [(name, [str(one[name]) if name in one else "–" for one in given]) for name in names]
    if len(runs) == 1:
        return rows
    return [(name, values) for name, values in rows if len(set(values)) > 1 and name not in HIDDEN]


def _given(run: Run, *, facts: bool) -> dict[str, Any]:
    given = {**(run.record.get("own_options") or {}), **(run.record.get("options") or {})}
    if not facts:
        return given
    kept = ("data", "manifest_sha256", "model_name_or_path", "world_size", "git_commit")
    return {**run.environment, **given, **{name: run.record.get(name) for name in kept}}


def bad_step(bad: dict[str, Any]) -> dict[str, Any]:
    """With the documents of all its packed rows, those with the highest losses first; a loss that is no number is."""
    rows = [{**one, "shard": row.get("shard"), "row": row.get("row")}
            for row in bad.get("rows") or [] for one in row.get("documents") or []]  # fmt: skip
    rows.sort(key=lambda one: (isinstance(one.get("loss"), str), one.get("loss") or 0.0), reverse=True)
    return {**bad, "documents": rows[:BAD_DOCUMENTS], "more": max(len(rows) - BAD_DOCUMENTS, 0)}


def figure(value: Any) -> str:
    """A number for people."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def card(value: Any, name: str) -> str:
    """The figure of a metric, short enough for its card."""
    if name == "hours_left":
        return duration(3600 * value)
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if isinstance(value, int) and value >= size:
            return f"{value / size:.3g} {unit}"
    return percent(value) if name == "mfu" else figure(value)


def size_text(size: int) -> str:
    """Bytes for people."""
    unit, of = next(((unit, of) for unit, of in (("GiB", 2**30), ("MiB", 2**20)) if size >= of), ("KiB", 2**10))
    return f"{size / of:,.1f} {unit}"


def percent(value: float | None) -> str:
    """A share for people."""
    return "–" if value is None else f"{100 * value:.1f} %"
