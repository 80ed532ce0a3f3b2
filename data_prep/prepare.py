"""Entry: raw instruction data -> packed, pre-tokenized shards, in three restartable stages.

    packhaul prepare --recipe configs/data/X.yaml --output DIR [--num-workers N]

tokenize (parallel, by slices of rows) -> plan (one process, reads lengths and hashes) -> pack (parallel, by shard).
The bytes are the same for any number of workers, and after any number of kills and reruns: a rerun skips what is done.

Past one machine, the stages run one after the other as jobs, the parallel ones as job arrays:
    --stage tokenize --task-index I --num-tasks N    then --stage plan, --stage pack (likewise), --stage finish

`--stage check` writes nothing: it looks at the recipe, the tokenizer, the template and some rows of each source.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name
from data_prep.recipe import Recipe, load_recipe
from data_prep.stages.pool import Workers, start_server
from data_prep.tokenization.tokenizer import leave_out_torch

if TYPE_CHECKING:
    from data_prep.shards import Manifest
    from data_prep.stages.job import Job
    from data_prep.stages.parts import Part

STAGES = ("tokenize", "plan", "pack", "finish")
ENCODERS = ("auto", "fastokens", "tiktoken", "tokenizers")
_PARTS_PER_PROOF = 4  # from this many parts on, looking words up saves more time than its proof costs
_TOKENS_PER_PACKER = 1 << 24  # a worker packs them in about the time that it takes to start


def main_of_process(argv: list[str] | None = None) -> int:
    """`main` in a process of its own."""
    return main(argv, own_process=True)


def main(argv: list[str] | None = None, *, own_process: bool = False) -> int:
    """Prepare one shard directory; 0 when what was asked is done, 2 when the input has to be changed, 130 after Ctrl-C.

    Args:
        own_process: nothing else runs in this process, so torch is not imported where only a function of the user's
            could use it.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _check(arguments)
        recipe = load_recipe(arguments.recipe)
        if own_process and not recipe.has_own_functions:
            leave_out_torch()
        if arguments.stage == "check":
            check(recipe, Path(arguments.output))
            return 0
        stages = STAGES if arguments.stage == "all" else (arguments.stage,)
        task = (arguments.task_index, arguments.num_tasks)
        if arguments.num_workers > 1:
            start_server()
        output, workers = Path(arguments.output), arguments.num_workers
        prepare(recipe, output, workers, arguments.keep_work, stages, task, arguments.encoder)
    except (ValueError, OSError) as error:
        print(f"{speaker('data_prep.prepare')}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        said = "stopped by Ctrl-C: finished parts are kept, run the same command again to go on"
        print(f"{speaker('data_prep.prepare')}: {said}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=usage_name("data_prep.prepare"), description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", required=True, help="YAML file, see configs/data/")
    parser.add_argument("--output", required=True, help="shard directory to make, or to go on with")
    parser.add_argument("--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    parser.add_argument("--keep-work", action="store_true", help="keep the intermediate parts after completion")
    stage_help = "only this stage (all); check: look at the recipe and some rows of each source, and write nothing"
    parser.add_argument("--stage", choices=("all", "check", *STAGES), default="all", help=stage_help)
    parser.add_argument("--task-index", type=int, default=0, help="which of the tasks of a job array this is, from 0")
    parser.add_argument("--num-tasks", type=int, default=1, help="tasks of the job array")
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="auto",
        help="tokenizers; fastokens or tiktoken, faster, if proven equal to it when the run starts; or the first of "
        "these two that is, and else tokenizers (auto)",
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


def check(recipe: Recipe, output: Path) -> None:
    """Look at the inputs, the tokenizer, the template and some rows of each source, before a job waits for its turn.

    Raises:
        ValueError: input that cannot be used, an output directory made from something else, or not one of the rows
            that were looked at can be kept.
    """
    import tempfile

    from data_prep.shards import MANIFEST
    from data_prep.stages.job import already_complete, open_job
    from data_prep.stages.tokenize_stage import look

    with tempfile.TemporaryDirectory() as folder:
        is_complete = (output / MANIFEST).exists()
        job = open_job(recipe, output if is_complete else Path(folder) / "output")
        if is_complete and already_complete(job):
            print(f"check: {output} is complete: there would be nothing to do")
            return
        for line in look(job.slices, job.recipe, job.renderer):
            print(line)


def prepare(
    recipe: Recipe,
    output: Path,
    num_workers: int = 1,
    keep_work: bool = False,
    stages: tuple[str, ...] = STAGES,
    task: tuple[int, int] = (0, 1),
    encoder: str = "auto",
) -> Manifest | None:
    """Run the stages that are not done yet; the manifest once everything is. No other process may do so meanwhile.

    Args:
        task: (index, number) of the task of a job array: it does every number-th part or shard.
        encoder: one of ENCODERS. The bytes are the same with each.

    Raises:
        ValueError: input that cannot be used, an output directory made from something else or in use by another
            process, or an earlier stage that is not finished.
    """
    from data_prep.shards import MANIFEST
    from data_prep.stages.job import WORK_DIR
    from data_prep.stages.output_lock import hold

    how = (recipe, output, num_workers, keep_work, stages, task, encoder)
    if (output / MANIFEST).exists():  # nothing will be written, maybe nothing can
        return _prepare(*how)
    with hold(output / WORK_DIR, "all" if len(stages) > 1 else stages[0], task):
        return _prepare(*how)


def _prepare(
    recipe: Recipe,
    output: Path,
    num_workers: int,
    keep_work: bool,
    stages: tuple[str, ...],
    task: tuple[int, int],
    encoder: str,
) -> Manifest | None:
    from data_prep.stages.finish_stage import finish
    from data_prep.stages.job import already_complete, open_job

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
    if "finish" not in stages:
        return None
    manifest = finish(job, keep_work)
    tokens = sum(s["tokens"] for s in manifest["sources"])
    print(f"{tokens:,} tokens in {time.monotonic() - started:.1f} s -> {output} (see its report.html)")
    return manifest


def _tokenize(job: Job, num_workers: int, task: tuple[int, int], encoder: str) -> None:
    from data_prep.stages.job import refuse_changed_input
    from data_prep.stages.tokenize_stage import tokenize_part

    # In a fresh output all is to be done, and workers load their tokenizers while the parts' names are worked out.
    mine = len(range(task[0], job.num_parts, task[1]))
    number = mine if job.is_fresh else len(_untokenized(job, task))
    if number < mine:
        print(f"{mine - number} of {mine} parts are tokenized already: going on with the rest")
    if not number:
        return
    if encoder != "tokenizers":
        _use_fast_encoder(job, encoder)
    if number >= _PARTS_PER_PROOF:
        job.renderer.encoder.look_words_up()
    with Workers(min(num_workers, number), (job.recipe, job.renderer, job.described)) as workers:
        workers.run(tokenize_part, _untokenized(job, task), "tokenize")
    refuse_changed_input(job)


def _untokenized(job: Job, task: tuple[int, int]) -> list[Part]:
    return [part for part in job.parts[task[0] :: task[1]] if not part.is_complete()]


def _use_fast_encoder(job: Job, encoder: str = "auto") -> None:
    from data_prep.stages.tokenize_stage import sample
    from data_prep.tokenization.text_encoder import FAST_ENCODERS

    tried = FAST_ENCODERS if encoder == "auto" else (encoder,)
    refused = job.renderer.use_fast_encoder(sample(job.slices, job.recipe), tried)
    if refused and encoder != "auto":
        raise ValueError(f"--encoder {encoder} cannot be used ({refused}): take --encoder auto or tokenizers")
    if refused and job.renderer.encoder.is_fast:
        refused = f" ({refused})"
    elif refused:
        refused = f", as the faster encoder cannot be used: {refused}"
    print(f"encoder: {job.renderer.encoder.name}{refused or ''}")


def _plan(job: Job) -> None:
    """Make the plan, unless it is there, and show it: a wrong mixture is seen before anything is packed."""
    from data_prep.stages.plan_stage import plan, summary_lines

    missing = job.missing_parts()
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(job.parts)} parts are not tokenized (the first numbers: {missing[:10]}"
            "; part number modulo --num-tasks is the --task-index): run `--stage tokenize` for them first"
        )
    summary = job.summary() or plan(job.parts, job.recipe, job.plan_dir)
    print("\n".join(summary_lines(summary, job.recipe.seq_len)))


def _pack(job: Job, num_workers: int, task: tuple[int, int]) -> None:
    from data_prep.stages.pack_stage import drop_other_markers, shard_tasks, write_task

    drop_other_markers(job.plan_dir)
    tasks = shard_tasks(job.planned(), job.recipe)[task[0] :: task[1]]
    todo = [t for t in tasks if not t.is_complete(job.plan_dir, job.output)]
    tokens = sum(t.end_row - t.first_row for t in todo) * job.recipe.seq_len
    workers = min(num_workers, 1 + tokens // _TOKENS_PER_PACKER)
    with Workers(min(workers, len(todo)), (job.parts, job.plan_dir, job.output)) as running:
        running.run(write_task, todo, "pack")


if __name__ == "__main__":
    sys.exit(main_of_process())
