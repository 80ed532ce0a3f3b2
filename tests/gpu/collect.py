"""Figures of calls to a GPU machine as one results file, and results files as the tables of docs/gpu.md.

    python -m tests.gpu.collect FIGURES.jsonl... [--output FILE]     # tests/benchmarks/results/gpu_<device>.json
    python -m tests.gpu.collect --docs                               # rewrites the tables of docs/gpu.md

Of a stage that ran several times, the last time that it ended well counts. Figures of a rehearsal are refused.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu import figures
from tests.gpu.stages import STAGES, Stage

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- {}: made by python -m tests.gpu.collect --docs -->", "<!-- end of {} -->"
SHOWN = ("torch", "transformers", "trl", "accelerate", "peft", "deepspeed", "bitsandbytes")
NOT_RUN = "not yet run"


def main(argv: list[str] | None = None) -> int:
    """Write the results file, or the page; 2 if the figures are not one machine's and one commit's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", type=Path, metavar="FIGURES.jsonl")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args(argv)
    if bool(asked.figures) == asked.docs:
        parser.error("expected files of figures, or --docs")
    if asked.docs:
        replace(PAGE, page(PAGE.read_text(), results(RESULTS)))
        return 0
    try:
        found = collected(asked.figures)
    except ValueError as error:
        print(f"collect: error: {error}", file=sys.stderr)
        return 2
    output = asked.output or RESULTS / f"gpu_{slug(found['machine']['device'])}.json"
    replace(output, json.dumps(found, indent=1) + "\n")
    print(output)
    return 0


def collected(files: list[Path]) -> dict[str, Any]:
    """The machine, and each stage's last entry that ended well, or else its last.

    Raises:
        ValueError: no machine is named, several are, or it was a rehearsal.
    """
    entries = [entry for file in files for entry in figures.read(file)]
    machines = [entry for entry in entries if entry.get("stage") == "machine"]
    if not machines:
        raise ValueError(f"{files[0]}: expected a first line that names the machine; tests.gpu.run writes it")
    if any(entry["rehearsal"] or not entry["device"] for entry in machines):
        raise ValueError("these are figures of a rehearsal on a CPU: only what a GPU did is recorded")
    for key in ("device", "commit"):
        if len(found := {entry[key] for entry in machines}) > 1:
            raise ValueError(f"expected figures of one {key}, found {', '.join(sorted(found))}: collect them apart")
    machine = {name: value for name, value in machines[-1].items() if name not in ("stage", "rehearsal")}
    stages: dict[str, Any] = {}
    for entry in (entry for entry in entries if "code" in entry):
        if entry["code"] == 0 or stages.get(entry["stage"], {}).get("code") != 0:
            stages[entry["stage"]] = {name: value for name, value in entry.items() if name != "stage"}
    return {"machine": machine, "stages": stages}


def slug(name: str) -> str:
    """A device's name in a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def replace(file: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.replace(file)


def results(folder: Path) -> list[dict[str, Any]]:
    """All results files of GPUs, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("gpu_*.json"))]


def page(text: str, found: list[dict[str, Any]]) -> str:
    """The page with its tables made anew.

    Raises:
        ValueError: the page has not the marks between which they stand.
    """
    for name, lines in (("figures", measured_tables(found)), ("stages", stage_table())):
        begin, end = BEGIN.format(name), END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"docs/gpu.md: expected one line {begin!r} and one {end!r}")
        before, rest = text.split(begin)
        text = "\n".join([before + begin, "", *lines, "", end + rest.split(end)[1]])
    return text


def stage_table() -> Iterator[str]:
    """The stages in order, with estimated seconds."""
    yield "| stage | what | estimated s | limit s | estimated s until its end |"
    yield "|---|---|---|---|---|"
    total = 0
    for stage in STAGES:
        total += stage.estimate
        yield f"| `{stage.name}` | {stage.what} | {stage.estimate} | {stage.limit} | {total} |"


def measured_tables(found: list[dict[str, Any]]) -> Iterator[str]:
    """A table for each machine; without any, one that says so."""
    for result in found or [{"machine": None, "stages": {}}]:
        yield from heading(result["machine"])
        yield ""
        yield "| stage | what | trained tokens/s | tokens/s | MFU | MFU, 6N | s a step | peak GiB (estimated) | other |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for stage in STAGES:
            cells = row(stage, result["stages"].get(stage.name))
            yield f"| `{stage.name}` | {stage.what} | {' | '.join(cells)} |"
        yield ""


def heading(machine: dict[str, Any] | None) -> Iterator[str]:
    """What ran, where and when."""
    if machine is None:
        yield f"No GPU: {NOT_RUN}."
        return
    versions = {name.lower(): version for name, version in machine["versions"].items()}
    named = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    where = f"**{machine['device']}**, driver {machine['driver']}, {machine['date'][:10]}"
    yield f"{where}, commit `{machine['commit']}`, Python {machine['python']}, {named}."


def row(stage: Stage, entry: dict[str, Any] | None) -> list[str]:
    """The cells of a stage, after its name."""
    result = (entry or {}).get("result", {})
    if not entry or "skipped" in result:
        return [NOT_RUN, *[""] * 5, result.get("skipped", "")]
    end = "" if entry["code"] == 0 else f"FAILED (exit code {entry['code']})"
    if "tokens_per_second" in result:
        return [*speeds(result), ", ".join(filter(None, (end, extra(result))))]
    outcomes = Counter(value for value in result.values() if isinstance(value, str))
    broken = [name for name, value in result.items() if value == "failed" or "error" in value]
    if stage.module[0] != "pytest":
        outcomes = Counter(passed=len(result) - len(broken), failed=len(broken))
    counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    return [*[""] * 6, "; ".join(filter(None, (end, counted, ", ".join(f"`{name}`" for name in broken))))]


def speeds(result: dict[str, Any]) -> list[str]:
    """Figures of a measurement."""
    shares = [f"{result[name]:.3f}" if result[name] is not None else "" for name in ("mfu", "mfu_6n")]
    plain = result["way"] in ("packhaul", "trl_packed_varlen") and result["peak_gib"] is not None
    memory = f"{result['peak_gib']} ({result['estimated_gib']})" if plain else str(result["peak_gib"] or "")
    tokens = [f"{result[name]:,}" for name in ("trained_tokens_per_second", "tokens_per_second")]
    return [*tokens, *shares, str(result["step_seconds"]), memory]


def extra(result: dict[str, Any]) -> str:
    """What only some measurements have."""
    parts = [f"attention {result['attention']}"]
    if result.get("save_stall_seconds"):
        parts.append(f"training waited {', '.join(f'{s:.2f}' for s in result['save_stall_seconds'])} s for saves")
    if "graphs" in result:
        parts.append(f"{result['graphs']} graphs, {result['graph_breaks']} graph breaks")
    if "profile" in result:
        kinds = result["profile"].get("ms_by_kind", {})
        parts.append("ms a step: " + ", ".join(f"{kind} {ms:.0f}" for kind, ms in kinds.items()))
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
