"""Entry: check a run before a GPU is held, in seconds; without torch, but for LoRA's targets and a run that is there.

    packhaul preflight --config configs/train/X.yaml [--accelerate_config configs/accelerate/NAME.yaml]
        [--nodes N --gpus_per_node N --gpu_memory_gib GIB --suggest]    # memory, disk and hours as well
    packhaul preflight --model ID    # of a model alone

`train.sft` runs the same checks as its first step. Exit code 0 with a summary, or 2 with every problem found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from data_prep.program_name import speaker, usage_name
from data_prep.shards import Manifest, check_files, read_manifest
from train.checks.bf16_copies import check_copies
from train.checks.deepspeed_file import deepspeed_notes
from train.checks.disk_space import check_space, needed_space
from train.checks.disk_space import describe as describe_space
from train.checks.launch import Launch, check_launch, check_launch_against, launch_from_environment, launch_from_file
from train.checks.model_files import check_model, expert_notes, model_notes
from train.checks.row_parts import check_parts, parts_lines, parts_notes
from train.checks.run_schedule import check_schedule, compiling_notes, derive, schedule_lines, schedule_notes
from train.config.flag_types import whole_number
from train.config.option_help import help_text
from train.config.run_config import RunConfig, load_run_config
from train.memory.asked import Asked, add_flags, asked_of
from train.run.run_record import FILE as RUN_RECORD


@dataclass(kw_only=True)
class Report:
    """What the checks found."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Check a run: 0 if nothing is wrong, 2 otherwise."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _flag_parser()
    if "--help" in words or "-h" in words:
        print(help_text(usage_name("train.preflight"), parser.format_help()))
        return 0
    try:
        own, run_flags = parser.parse_known_args(words)
        asked = asked_of(own)
    except ValueError as error:
        print(f"{speaker('train.preflight')}: error: {error}", file=sys.stderr)
        return 2
    report = _examine_model(run_flags, asked) if asked.model else _examine_flags(run_flags, own, asked)
    _print(report)
    return 2 if report.problems else 0


class _FlagParser(argparse.ArgumentParser):
    """Raises a ValueError where argparse ends the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _Once(argparse.Action):
    """Stores a value; a second one is an error."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *values: Any) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "given twice: keep one")
        setattr(namespace, self.dest, values[0])


def _flag_parser() -> argparse.ArgumentParser:
    """Takes the check's own flags; the others are the run's."""
    parser = _FlagParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    add = parser.add_argument_group("Flags of the preflight check").add_argument
    launch_help = "the launch file that the run will be started with"
    add("--accelerate_config", action=_Once, type=Path, metavar="FILE", help=launch_help)
    world_help = "world size, where a flag of accelerate launch gives it and not the file"
    add("--num_processes", action=_Once, type=whole_number, metavar="N", help=world_help)
    data_help = "read every shard and compare its hash; without it, only presence and size are checked"
    add("--verify_data", action="store_true", help=data_help)
    add_flags(parser, _Once)
    return parser


def _examine_model(run_flags: list[str], asked: Asked) -> Report:
    """A model alone."""
    if run_flags:
        return Report(problems=[f"--model: expected no options of a run next to it, found {' '.join(run_flags)}"])
    from train.memory.model_page import model_lines

    report = Report()
    try:
        report.summary += model_lines(str(asked.model), asked)
    except (ValueError, OSError) as error:
        report.problems.append(f"--model {asked.model}: {error}")
    return report


def _examine_flags(run_flags: list[str], own: argparse.Namespace, asked: Asked) -> Report:
    try:
        config = load_run_config(run_flags)
    except ValueError as error:
        # The launch file can be checked all the same.
        report = Report()
        launch = _read_launch(own.accelerate_config, report)
        report.problems += [*(check_launch(launch, own.num_processes) if launch else ()), str(error)]
        return report
    world_size = own.num_processes or asked.processes
    launch_file = own.accelerate_config
    report = examine(config, accelerate_config=launch_file, world_size=world_size, verify_data=own.verify_data)
    if asked.processes is not None and own.num_processes not in (None, asked.processes):
        report.problems.append(
            f"--num_processes {own.num_processes}: --nodes and --gpus_per_node make {asked.processes}"
        )
    if not report.problems:
        _compare_targets(config, report)
        _look_into_output_dir(config, _read_launch(launch_file, report), world_size, report)
    if asked and not report.problems:
        _add_page(config, launch_file, world_size, asked, report)
    return report


def _add_page(
    config: RunConfig, launch_file: Path | None, world_size: int | None, asked: Asked, report: Report
) -> None:
    """Memory, disk and hours: only where they are asked for, as they need torch and a model without weights."""
    from train.memory.preflight_page import page_lines

    launch = _read_launch(launch_file, report)
    processes = world_size or (launch.num_processes if launch else None) or _assumed(config)
    try:
        lines, notes = page_lines(config, read_manifest(config.own.data), launch, processes, asked)
    except (ValueError, OSError) as error:
        report.notes.append(f"memory is not counted: {error}")
        return
    report.summary += lines
    report.notes += notes


def _compare_targets(config: RunConfig, report: Report) -> None:
    """LoRA's targets with the model's names: the only check that imports torch, so it comes last."""
    from train.model.lora_targets import check_targets

    try:
        if reach := check_targets(config):
            report.summary.append(f"LoRA         {reach}")
            report.notes += reach.notes()
    except ValueError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.notes.append(f"LoRA's targets are not compared with the model's names, its config is not here: {error}")


def _look_into_output_dir(config: RunConfig, launch: Launch | None, world_size: int | None, report: Report) -> None:
    """Where an earlier start has left a run, what this one would do with it. Training looks by itself."""
    if not (Path(config.sft["output_dir"]) / RUN_RECORD).exists():
        return
    from train.checkpoint.before_start import what_a_start_does  # imports torch

    deepspeed = launch.deepspeed_settings() if launch and launch.distributed_type == "DEEPSPEED" else None
    processes = world_size or (launch.num_processes if launch else None)
    try:
        lines = what_a_start_does(config, read_manifest(config.own.data), processes, deepspeed)
        report.summary += [f"output_dir   {line}" for line in lines]
    except ValueError as error:
        report.problems.append(f"output_dir: {error}")


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
    processes = world_size
    if processes is None and launch:
        processes = launch.num_processes
    if launch:
        report.problems += check_launch(launch, world_size)
        report.problems += check_launch_against(launch, config, processes)
        report.notes += _launch_notes(launch)
    report.problems += [*_check_world(config, processes), *check_parts(config, processes)]
    report.problems += check_copies(config, launch, processes)
    report.notes += parts_notes(config, launch, processes)
    manifest = _read_data(config, report, verify_data)
    report.problems += check_model(config, manifest)
    if manifest:
        _check_rows(config, manifest, report)
    sources = [s["name"] for s in manifest["sources"] if s.get("eval_documents", 1)] if manifest else []
    report.problems += check_schedule(config, manifest["splits"]["eval"]["rows"] if manifest else None, sources)
    report.problems += _check_questions(config)
    if processes is None:
        assumed = _assumed(config)
        report.notes.append(f"the number of processes is not known (--num_processes N): the numbers are for {assumed}")
    kind = launch.distributed_type if launch else "NO"
    report.notes += model_notes(config, sharded=kind == "DEEPSPEED")
    report.notes += expert_notes(config) if kind not in ("DEEPSPEED", "FSDP") else ()
    if manifest and manifest["splits"]["train"]["rows"]:
        _describe(config, manifest, processes or _assumed(config), launch, report)
    return report


def _check_questions(config: RunConfig) -> Iterator[str]:
    """Of a file of sample questions."""
    from train.serving.prompt_files import read_file

    if not config.own.sample_questions:
        return
    if config.value("eval_strategy") == "no":
        yield "sample_questions: they are asked at each evaluation, and there is none: write eval_strategy: steps"
    try:
        read_file(Path(config.own.sample_questions), "sample_questions")
    except ValueError as error:
        yield str(error)


def _assumed(config: RunConfig) -> int:
    """The world size that numbers are given for where none is known."""
    return config.own.expected_world_size or config.own.sequence_parallel


def _check_rows(config: RunConfig, manifest: Manifest, report: Report) -> None:
    """Rows that pre-training has left untrained; numpy, which it needs, is imported where there are shards."""
    from train.checks.untrained_rows import check_rows

    problems, notes = check_rows(config, manifest)
    report.problems += problems
    report.notes += notes


def _read_launch(path: Path | None, report: Report) -> Launch | None:
    try:
        return launch_from_file(path) if path else launch_from_environment()
    except ValueError as error:
        report.problems.append(str(error))
        return None


def _read_data(config: RunConfig, report: Report, verify_data: bool) -> Manifest | None:
    try:
        manifest: Manifest = read_manifest(config.own.data)
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


def _describe(config: RunConfig, manifest: Manifest, processes: int, launch: Launch | None, report: Report) -> None:
    train, schedule = manifest["splits"]["train"], derive(config, manifest["splits"]["train"], processes)
    report.notes += schedule_notes(config, schedule, train)
    report.notes += compiling_notes(config, manifest["seq_len"])
    space = needed_space(config, schedule)
    report.problems += check_space(config, space) if space else ()
    report.summary += [
        f"launch       {launch.distributed_type if launch else 'not given'}, precision {config.precision}",
        f"model        {config.value('model_name_or_path')}",
        f"data         {config.own.data}: {train['rows']:,} rows of at most {manifest['seq_len']:,} tokens, "
        f"{train['tokens']:,} tokens, {manifest['splits']['eval']['rows']:,} eval rows",
        *schedule_lines(config, schedule),
        *parts_lines(config, manifest),
    ]
    if space:
        report.summary.append(f"disk         at least {describe_space(space)}")


def _print(report: Report) -> None:
    for line in report.summary:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    sys.stdout.flush()
    if report.problems:
        print(f"{speaker('train.preflight')}: {len(report.problems)} problem(s) to solve first:", file=sys.stderr)
        for problem in report.problems:
            print(f"  - {problem}", file=sys.stderr)
    else:
        print(f"{speaker('train.preflight')}: nothing wrong found")


if __name__ == "__main__":
    sys.exit(main())
