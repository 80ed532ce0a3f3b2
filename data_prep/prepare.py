"""Entry: raw instruction data -> packed, pre-tokenized shards, in three restartable stages.

    python -m data_prep.prepare --recipe configs/data/X.yaml --output DIR [--num-workers N]

tokenize (parallel, by slices of rows) -> plan (one process, reads lengths and hashes) -> pack (parallel, by shard).
The bytes are the same for any number of workers, and after any number of kills and reruns: a rerun skips what is done.

Past one machine, the stages run one after the other as jobs, the parallel ones as job arrays:
    --stage tokenize --task-index I --num-tasks N    then --stage plan, --stage pack (likewise), --stage finish
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.pool import Workers, start_server
from data_prep.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from data_prep.job import Job
    from data_prep.parts import Part

STAGES = ("tokenize", "plan", "pack", "finish")
ENCODERS = ("auto", "tokenizers")
_PARTS_PER_PROOF = 4  # tokenized slower in about the time that the proof takes which makes it faster
_TOKENS_PER_PACKER = 1 << 24  # packed in about the time that a worker takes to start


def main(argv: list[str] | None = None) -> int:
    """Prepare one shard directory; 0 when what was asked is done, 2 when the input has to be changed."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _check(arguments)
        recipe = load_recipe(arguments.recipe)
        stages = STAGES if arguments.stage == "all" else (arguments.stage,)
        task = (arguments.task_index, arguments.num_tasks)
        if arguments.num_workers > 1:
            start_server()
        output, workers = Path(arguments.output), arguments.num_workers
        prepare(recipe, output, workers, arguments.keep_work, stages, task, arguments.encoder)
    except (ValueError, OSError) as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", required=True, help="YAML file, see configs/data/")
    parser.add_argument("--output", required=True, help="shard directory to make, or to go on with")
    parser.add_argument("--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    parser.add_argument("--keep-work", action="store_true", help="keep the intermediate parts after completion")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="only this stage (all)")
    parser.add_argument("--task-index", type=int, default=0, help="which of the tasks of a job array this is, from 0")
    parser.add_argument("--num-tasks", type=int, default=1, help="tasks of the job array")
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="auto",
        help="tokenizers, or a faster one for tokenizers that it is proven equal on when the run starts (auto)",
    )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if arguments.num_workers < 1:
        raise ValueError(f"--num-workers must be at least 1, found {arguments.num_workers}")
    if not 0 <= arguments.task_index < arguments.num_tasks:
        raise ValueError(
            f"--task-index must be from 0 to --num-tasks - 1, found {arguments.task_index} of {arguments.num_tasks} "
            "(a job array from 0: sbatch --array=0-N)"
        )
    if arguments.num_tasks > 1 and arguments.stage not in ("tokenize", "pack"):
        raise ValueError(f"--num-tasks splits the stages tokenize and pack, not {arguments.stage}")


def prepare(
    recipe: Recipe,
    output: Path,
    num_workers: int = 1,
    keep_work: bool = False,
    stages: tuple[str, ...] = STAGES,
    task: tuple[int, int] = (0, 1),
    encoder: str = "auto",
) -> dict[str, Any] | None:
    """Run the stages that are not done yet; the manifest once everything is.

    Args:
        task: (index, number) of the task of a job array: it does every number-th piece of work.
        encoder: one of ENCODERS. The bytes are the same with each.

    Raises:
        ValueError: input that cannot be used, an output directory made from something else, or an earlier stage that
            is not finished.
    """
    from data_prep.job import already_complete, open_job

    started = time.monotonic()
    job = open_job(recipe, output)
    done = already_complete(job)
    if done:
        print(f"{output} is complete: nothing to do")
        if not keep_work:  # a kill may have come before it was all removed
            shutil.rmtree(job.work, ignore_errors=True)
        return done
    if "tokenize" in stages:
        _tokenize(job, num_workers, task, encoder)
    if "plan" in stages:
        _plan(job)
    if "pack" in stages:
        _pack(job, num_workers, task)
    return _finish(job, keep_work, started) if "finish" in stages else None


def _tokenize(job: Job, num_workers: int, task: tuple[int, int], encoder: str) -> None:
    from data_prep.job import refuse_changed_input
    from data_prep.tokenize_stage import tokenize_part

    # In a fresh output all is to be done, and workers load their tokenizers while the parts' names are worked out.
    mine = len(range(task[0], job.num_parts, task[1]))
    number = mine if job.is_fresh else len(_untokenized(job, task))
    if number < mine:
        print(f"{mine - number} of {mine} parts are tokenized already: going on with the rest")
    if not number:
        return
    if encoder == "auto":
        _use_fast_encoder(job)
    if number >= _PARTS_PER_PROOF:
        job.renderer.encoder.look_words_up()
    with Workers(min(num_workers, number), (job.recipe, job.renderer, job.described)) as workers:
        workers.run(tokenize_part, _untokenized(job, task), "tokenize")
    refuse_changed_input(job)


def _untokenized(job: Job, task: tuple[int, int]) -> list[Part]:
    return [part for part in job.parts[task[0] :: task[1]] if not part.is_complete()]


def _use_fast_encoder(job: Job) -> None:
    from data_prep.tokenize_stage import sample

    refused = job.renderer.use_fast_encoder(sample(job.slices, job.recipe))
    because = f", as the faster encoder cannot be used: {refused}" if refused else ""
    print(f"encoder: {job.renderer.encoder.name}{because}")


def _plan(job: Job) -> None:
    """Make the plan, unless it is there, and show it: a wrong mixture is seen before anything is packed."""
    from data_prep.manifest import summary_lines
    from data_prep.plan_stage import plan

    missing = job.missing_parts()
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(job.parts)} parts are not tokenized (the first numbers: {missing[:10]}"
            "; part number modulo --num-tasks is the --task-index): run `--stage tokenize` for them first"
        )
    summary = job.summary() or plan(job.parts, job.recipe, job.plan_dir)
    print("\n".join(summary_lines(summary, job.recipe.seq_len)))


def _pack(job: Job, num_workers: int, task: tuple[int, int]) -> None:
    from data_prep.pack_stage import drop_other_markers, shard_tasks, write_task

    drop_other_markers(job.plan_dir)
    tasks = shard_tasks(_planned(job), job.recipe)[task[0] :: task[1]]
    todo = [t for t in tasks if not t.is_complete(job.plan_dir, job.output)]
    tokens = sum(t.end_row - t.first_row for t in todo) * job.recipe.seq_len
    workers = min(num_workers, 1 + tokens // _TOKENS_PER_PACKER)
    with Workers(min(workers, len(todo)), (job.parts, job.plan_dir, job.output)) as running:
        running.run(write_task, todo, "pack")


def _finish(job: Job, keep_work: bool, started: float) -> dict[str, Any]:
    """What is left when all shards are there: the lists of dropped rows, the report, and the manifest, last."""
    from data_prep.manifest import build_manifest, write_dropped
    from data_prep.pack_stage import remove_unlisted, shard_tasks
    from data_prep.report import load_report_data, write_report
    from data_prep.shards import write_manifest

    tasks = shard_tasks(_planned(job), job.recipe)
    missing = [t.file for t in tasks if not t.is_complete(job.plan_dir, job.output)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(tasks)} shards are not packed ({missing[:5]}): run `--stage pack` first"
        )
    for leftover in (*job.output.glob(".*.*.tmp"), *job.output.glob("*/.*.tmp")):  # of writes that were killed
        leftover.unlink()
    remove_unlisted(tasks, job.output)
    write_dropped(job)
    manifest = build_manifest(job, tasks)
    data = load_report_data([part.file(".npz") for part in job.parts], job.plan_dir / "plan.npz")
    write_report(job.output, manifest, data, job.renderer.tokenizer)
    write_manifest(job.output, manifest)
    if not keep_work:
        shutil.rmtree(job.work)
    tokens = sum(s["tokens"] for s in manifest["sources"])
    print(f"{tokens:,} tokens in {time.monotonic() - started:.1f} s -> {job.output} (see its report.html)")
    return manifest


def _planned(job: Job) -> dict[str, Any]:
    summary = job.summary()
    if summary is None:
        raise ValueError("there is no plan yet: run `--stage plan` first")
    return summary


if __name__ == "__main__":
    sys.exit(main())
