"""Submit jobs with the values of env.sh: #SBATCH lines expand nothing and cannot hold them.

  slurm/submit.sh [--dry-run] prepare --recipe configs/data/X.yaml --output DIR
  slurm/submit.sh [--dry-run] train --config configs/train/X.yaml [--any_option value]
  slurm/submit.sh [--dry-run] export --checkpoint RUN_DIR --output DIR
  slurm/submit.sh [--dry-run] evaluate --export DIR --run RUN_DIR --tasks TASK,TASK [any option of lm-eval]
  slurm/submit.sh [--dry-run] prepare ... then train ... then export ...   each starts once the one before succeeded

Before anything is submitted the recipe and the run are checked here, where the environment can be entered. What a job
reads (config, recipe, launch and DeepSpeed files, the values of env.sh) is copied, so that a later edit changes no job
in the queue. Prints one line for each job: its stage and its id. --dry-run prints the sbatch commands instead; with
--show-scripts the scripts as well, in comments, so that the output can be run.

With PACKHAUL_PREPARE_TASKS above 1, prepare is four jobs, each after the one before: tokenize (a job array), plan,
pack (a job array), finish. Submitted again they skip what is done. After a failure, only what is missing:
  slurm/submit.sh prepare --from pack --array 2,5 --recipe ... --output ...      tasks 2 and 5 of pack, then finish
  slurm/submit.sh prepare --from pack --array 2,5 --only --recipe ...            these tasks and nothing else
"""

import os
import shutil

from slurm.jobs import checked_here, sbatch, site, stages, submission
from slurm.jobs.words import Refusal, complain

_OWN_FLAGS = ("--dry-run", "--show-scripts")


def main(words):
    """0 when all jobs are in the queue."""
    if words[:1] in (["-h"], ["--help"]):
        print((__doc__ or "").strip())
        return 0
    own = [word for word in words if word in _OWN_FLAGS]
    here = site.Site()
    site.check(here)
    asked = list(stages.read([word for word in words if word not in _OWN_FLAGS]))
    for stage in asked:  # all of them, before the first is submitted
        stages.check(here, stage)
    if site.doubt(here) and any(stage.kind == "train" for stage in asked):
        complain(site.doubt(here))
    dry_run = bool(own)
    if not dry_run:
        checked_here.check(here, asked)
    queue = sbatch.Queue(here, dry_run)
    for stage in asked:
        _submit(here, stage, queue)
    if "--show-scripts" in own:
        _show(queue.scripts)
    return 0


def _submit(here, stage, queue):
    """The jobs of a stage, with copies of what they read. No copies stay of a stage that sbatch has refused."""
    if queue.dry_run:
        _submit_jobs(here, stage, "", stage.arguments, queue)
        return
    copies = submission.make(here, stage.kind, stage.arguments, os.path.join("slurm/logs", stage.name))
    before = len(queue.submitted)
    try:
        _submit_jobs(here, stage, copies.folder, copies.arguments, queue)
    except Refusal:
        if len(queue.submitted) == before:
            shutil.rmtree(copies.folder, ignore_errors=True)
        raise


def _submit_jobs(here, stage, folder, arguments, queue):
    """One job, the chain of a preparation in tasks, or the attempts of a training that may not be requeued."""
    options = [*sbatch.options_of(here, stage.kind), *_passed_on(folder)]
    if stage.kind == "prepare" and here.number("PREPARE_TASKS") > 1:
        _submit_chain(here, stage, arguments, options, queue)
    elif stage.kind == "train" and here.number("CHAIN") > 1:
        _submit_attempts(here, stage, arguments, folder, queue)
    else:
        named = ["--job-name=" + stage.name, "--output=slurm/logs/{}/%j.out".format(stage.name)]
        queue.submit(stage.kind, [*options, *named], ["slurm/{}.sbatch".format(stage.kind), *arguments])


def _passed_on(folder, **more):
    """--export: everything, also where a site says otherwise, and where the copies are."""
    pairs = ["{}={}".format(name, value) for name, value in sorted(more.items())]
    if folder:
        pairs.insert(0, "PACKHAUL_SUBMISSION=" + folder)
    return ["--export=" + ",".join(["ALL", *pairs])]


def _submit_attempts(here, stage, arguments, folder, queue):
    """The jobs have the same name, and SLURM runs one job of a name at a time; each goes on where the one before it
    saved, and ends at once if that one has finished, failed or was cancelled."""
    first, before = queue.previous, ""
    for index in range(1, here.number("CHAIN") + 1):
        queue.previous = first
        chain = {"PACKHAUL_CHAIN_INDEX": str(index)}
        chain.update({"PACKHAUL_CHAIN_BEFORE": before} if before else {})
        options = [*sbatch.options_of(here, "train"), *_passed_on(folder, **chain)]
        options += ["--job-name=" + stage.name, "--output=slurm/logs/{}/%j.out".format(stage.name)]
        before = queue.submit("train", options, ["slurm/train.sbatch", *arguments], also_after="singleton")


def _submit_chain(here, stage, arguments, options, queue):
    """The array's tasks get their number from SLURM (slurm.jobs.prepare_job), everything else from here."""
    tasks, at_once = here.number("PREPARE_TASKS"), here.number("PREPARE_AT_ONCE")
    rest = stages.without_part(arguments)
    array = stage.array or "0-{}".format(tasks - 1)
    first = stages.PARTS.index(stage.first_part)
    for part in stages.PARTS[first : first + 1] if stage.only else stages.PARTS[first:]:
        name = part + stage.name[len("prepare") :]
        words = ["slurm/prepare.sbatch", "--stage", part]
        own = [*options, "--job-name=" + name]
        if part in stages.ARRAYS:
            throttle = "%{}".format(at_once) if at_once else ""
            own += ["--array={}{}".format(array, throttle), "--output=slurm/logs/{}/%A_%a.out".format(stage.name)]
            words += ["--num-tasks", str(tasks)]
        else:
            own.append("--output=slurm/logs/{}/%j.out".format(stage.name))
        queue.submit(part, own, [*words, *rest])
        array = "0-{}".format(tasks - 1)  # --array is for the first


def _show(scripts):
    for script in sorted(scripts):
        print("# --- {}, which reads slurm/env.sh ---".format(script))
        with open(script, encoding="utf-8") as file:
            for line in file:
                print("# " + line.rstrip("\n"))
