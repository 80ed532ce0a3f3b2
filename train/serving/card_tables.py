"""Tables of a model card: sources, splits, options and metrics, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_FOLDERS = ("output_dir", "logging_dir", "run_name", "data")  # of the training machine
_TRAINING = ("loss", "learning_rate", "epoch")


def sources_table(manifest: dict[str, Any]) -> Iterator[str]:
    """Each source: where it is from, its rows and its share."""
    named = {source["name"]: source for source in manifest["recipe"].get("sources", [])}
    shares = {share["source"]: share for share in manifest.get("mixture", [])}
    rows = []
    for counts in manifest.get("sources", []):
        name, share = counts["name"], shares.get(counts["name"], {})
        dropped = sum(counts.get("dropped", {}).values())
        used = (counts.get("train_uses", 0), counts.get("eval_documents", 0), share.get("got", 0.0))
        rows.append((name, _origin(named.get(name, {})), counts["rows"], dropped, *used[:2], f"{100 * used[2]:.1f} %"))
    return _table(
        ("source", "from", "raw rows", "dropped", "documents trained in an epoch", "held out", "share of the mixture"),
        rows,
    )


def _origin(source: dict[str, Any]) -> str:
    """Of a source of the recipe: the data set on the hub with its revision, or the file's name."""
    if source.get("dataset"):
        words = [source["dataset"], source.get("subset"), source.get("split")]
        revision = f" at {source['revision']}" if source.get("revision") else ", revision unknown"
        return " ".join(filter(None, words)) + revision
    paths = source.get("path") or []
    return ", ".join(f"`{Path(path).name}`" for path in ([paths] if isinstance(paths, str) else paths)) or "unknown"


def splits_table(manifest: dict[str, Any]) -> Iterator[str]:
    """Documents and tokens of each split."""
    rows = [
        (name, split.get("documents", 0), split.get("tokens", 0), split.get("trained_tokens", 0), split.get("rows", 0))
        for name, split in manifest.get("splits", {}).items()
    ]
    return _table(("split", "documents", "tokens", "trained tokens", "packed rows"), rows)


def options_table(run: dict[str, Any]) -> Iterator[str]:
    """The options that were given; of paths, the last part."""
    options = {**run.get("own_options", {}), **run.get("options", {})}
    if not options:
        yield "Unknown: the run has no run.json with its options."
        return
    shown = [(f"`{name}`", f"`{_plain(value)}`") for name, value in sorted(options.items()) if name not in _FOLDERS]
    yield from _table(("option", "value"), shown)
    yield ""
    yield f"Processes: {run.get('world_size', 'unknown')}."


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)


def metrics_table(run: dict[str, Any], state: dict[str, Any], step: int | None) -> Iterator[str]:
    """The last evaluation up to the exported step, next to the base model, and the last training loss."""
    history = [entry for entry in state.get("log_history", []) if step is None or entry.get("step", 0) <= step]
    evaluation = _last(history, "eval_loss")
    training = _last(history, "loss")
    if not evaluation and not training:
        yield "None: the run has logged neither an evaluation nor a loss."
        return
    baseline = run.get("baseline") or {}
    numbers = {name: evaluation[name] for name in sorted(evaluation) if name.endswith("loss")}
    numbers |= {name: training[name] for name in _TRAINING if name in training}
    rows = [(f"`{name}`", _number(value), _number(baseline.get(name))) for name, value in numbers.items()]
    yield from _table(("metric", "this model", "base model"), rows)
    yield ""
    yield f"Nats for each trained token. Evaluated at step {evaluation.get('step', 'none')}, logged at step "
    yield f"{training.get('step', 'none')}."


def benchmarks_table(evaluations: list[dict[str, Any]]) -> Iterator[str]:
    """Each metric of lm-evaluation-harness with its standard error; of a task that was asked again, the last ones."""
    rows = {}
    for evaluation in evaluations:
        for task, values in evaluation.get("results", {}).items():
            shots = evaluation.get("n-shot", {}).get(task, "")
            for metric, value in values.items():
                if isinstance(value, (int, float)) and "," in metric and "_stderr" not in metric:
                    error = values.get(metric.replace(",", "_stderr,", 1))
                    rows[task, metric] = (task, f"`{metric}`", _number(value), _number(error), shots)
    yield from _table(("task", "metric", "value", "standard error", "shots"), [rows[key] for key in sorted(rows)])
    yield ""
    versions = sorted({str(evaluation.get("lm_eval_version", "unknown")) for evaluation in evaluations})
    yield f"By lm-evaluation-harness {', '.join(versions)}, on an export of this step."


def _last(history: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((entry for entry in reversed(history) if name in entry), {})


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
