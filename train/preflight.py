"""Entry: everything that can be known to be wrong before a GPU is held, in seconds and without torch.

    python -m train.preflight --config configs/train/X.yaml [--accelerate_config configs/accelerate/NAME.yaml]

`train.sft` runs the same checks as its first step. Exit code 0 with a summary, or 2 with every problem found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.shards import check_files, read_manifest
from train.config import RunConfig, help_text, load_run_config
from train.deepspeed_file import deepspeed_notes
from train.launch import Launch, check_launch, check_launch_against, launch_from_environment, launch_from_file
from train.model_files import check_model, model_notes
from train.schedule import check_schedule, derive, schedule_lines, schedule_notes

_FLAGS = """\
Flags of the preflight check:
  --accelerate_config FILE
        The launch file that the run will be started with.
  --num_processes N
        World size, where a flag of accelerate launch gives it and not the file.
  --verify_data
        Read every shard and compare its hash; without it, that all are there with their sizes.
"""


@dataclass(kw_only=True)
class Report:
    """What the checks found."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Check a run: 0 if nothing is wrong, 2 otherwise."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        print(help_text("python -m train.preflight", _FLAGS))
        return 0
    report = Report()
    try:
        accelerate_config, processes, verify_data = _own_flags(words)
    except ValueError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    try:
        config = load_run_config(words)
    except ValueError as error:  # the launch file can be checked all the same
        launch = _read_launch(accelerate_config, report)
        report.problems += [*(check_launch(launch, processes) if launch else ()), str(error)]
    else:
        report = examine(config, accelerate_config=accelerate_config, world_size=processes, verify_data=verify_data)
    _print(report)
    return 2 if report.problems else 0


def _own_flags(words: list[str]) -> tuple[Path | None, int | None, bool]:
    """Take the check's own flags out of the run's flags."""
    verify_data = "--verify_data" in words
    if verify_data:
        words.remove("--verify_data")
    file, number = _take(words, "--accelerate_config"), _take(words, "--num_processes")
    if number is not None and not (number.isdigit() and int(number)):
        raise ValueError(f"--num_processes: expected a whole number of 1 or more, found {number!r}")
    return Path(file) if file else None, int(number) if number else None, verify_data


def _take(words: list[str], flag: str) -> str | None:
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            if not equals and i + 1 == len(words):
                raise ValueError(f"{flag}: expected a value behind it, found none")
            value = value if equals else words[i + 1]
            del words[i : i + (1 if equals else 2)]
            return value
    return None


def check(config: RunConfig, *, accelerate_config: Path | None = None, world_size: int | None = None) -> list[str]:
    """Every problem found, empty if none. Cheap enough for every process to run.

    Args:
        accelerate_config: the launch file; None inside `accelerate launch`, whose environment is read then.
        world_size: number of processes, where known.
    """
    return examine(config, accelerate_config=accelerate_config, world_size=world_size).problems


def examine(
    config: RunConfig, *, accelerate_config: Path | None, world_size: int | None, verify_data: bool = False
) -> Report:
    """All checks, the notes and the derived numbers."""
    report = Report()
    launch = _read_launch(accelerate_config, report)
    processes = world_size if world_size is not None else (launch.num_processes if launch else None)
    if launch:
        report.problems += check_launch(launch, world_size)
        report.problems += check_launch_against(launch, config, processes)
        report.notes += _launch_notes(launch)
    report.problems += _check_world(config, processes)
    manifest = _read_data(config, report, verify_data)
    report.problems += check_model(config, manifest)
    sources = [s["name"] for s in manifest["sources"] if s.get("eval_documents", 1)] if manifest else []
    report.problems += check_schedule(config, manifest["splits"]["eval"]["rows"] if manifest else None, sources)
    if processes is None:
        assumed = config.own.expected_world_size or 1
        report.notes.append(f"the number of processes is not known (--num_processes N): the numbers are for {assumed}")
    report.notes += model_notes(config, sharded=launch is not None and launch.distributed_type == "DEEPSPEED")
    if manifest and manifest["splits"]["train"]["rows"]:
        _describe(config, manifest, processes or config.own.expected_world_size or 1, launch, report)
    return report


def _read_launch(path: Path | None, report: Report) -> Launch | None:
    try:
        return launch_from_file(path) if path else launch_from_environment()
    except ValueError as error:
        report.problems.append(str(error))
        return None


def _read_data(config: RunConfig, report: Report, verify_data: bool) -> dict[str, Any] | None:
    try:
        manifest = read_manifest(config.own.data)
    except ValueError as error:
        report.problems.append(f"data: {error}")
        return None
    damaged = check_files(config.own.data, manifest, hashes=verify_data)
    report.problems += [f"data: {problem}; copy or prepare the shards again" for problem in damaged]
    if not manifest["splits"]["train"]["rows"]:
        report.problems.append(
            f"data: {config.own.data} has no rows to train on: see its dropped/ folder for the reasons"
        )
    return manifest


def _check_world(config: RunConfig, processes: int | None) -> Iterator[str]:
    expected = config.own.expected_world_size
    if expected is not None and processes is not None and processes != expected:
        yield f"expected_world_size is {expected}, the launch makes {processes}: change one of the two"


def _launch_notes(launch: Launch) -> Iterator[str]:
    if launch.distributed_type == "DEEPSPEED":
        try:
            yield from deepspeed_notes(launch.deepspeed_settings(), launch.deepspeed_file or launch.origin)
        except (ValueError, TypeError):
            return  # reported as a problem


def _describe(
    config: RunConfig, manifest: dict[str, Any], processes: int, launch: Launch | None, report: Report
) -> None:
    train, schedule = manifest["splits"]["train"], derive(config, manifest["splits"]["train"], processes)
    report.notes += schedule_notes(config, schedule, train)
    report.summary += [
        f"launch       {launch.distributed_type if launch else 'not given'}, precision {config.precision}",
        f"model        {config.value('model_name_or_path')}",
        f"data         {config.own.data}: {train['rows']:,} rows of at most {manifest['seq_len']:,} tokens, "
        f"{train['tokens']:,} tokens, {manifest['splits']['eval']['rows']:,} eval rows",
        *schedule_lines(config, schedule),
    ]


def _print(report: Report) -> None:
    for line in report.summary:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    sys.stdout.flush()
    if report.problems:
        print(f"preflight: {len(report.problems)} problem(s) to solve first:", file=sys.stderr)
        for problem in report.problems:
            print(f"  - {problem}", file=sys.stderr)
    else:
        print("preflight: nothing wrong found")


if __name__ == "__main__":
    sys.exit(main())
