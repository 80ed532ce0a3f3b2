"""The checks of a submission, on the login node: what is wrong costs seconds, and not a night in the queue."""

from slurm.jobs import environment, folders_here
from slurm.jobs.words import Refusal, complain, flag, tell

_SECONDS = 180  # for one check: a source of many files takes longer to look at
_CANNOT_TELL = (124, 126, 127)  # took too long, or did not start


def check(site, stages):
    """Check each stage in the environment that its job will run in.

    Raises:
        Refusal: what the checks have found, exit code 2.
    """
    if not site.number("CHECK_SUBMISSION"):
        return
    for number, stage in enumerate(stages):
        _refuse(stage, folders_here.problem_of(stage, stages[:number]))
    if site.text("CONTAINER") and site.text("CONTAINER_RUNTIME") == "pyxis":
        complain("not checked before the submission: only a job can enter a container of pyxis")
        return
    try:
        here = environment.enter(site)
    except Refusal as reason:  # login nodes often lack what compute nodes have
        complain("not checked before the submission: {}".format(reason))
        return
    for number, stage in enumerate(stages):
        command = _command(site, stage, is_first=number == 0)
        if command:
            tell("checking {} on this machine before it is submitted".format(stage.kind))
            found = _run(here, stage, command)
            _refuse(stage, folders_here.problem_of(stage, stages[:number], found))


def _command(site, stage, is_first):
    """What checks the stage; None where nothing can be told yet."""
    if stage.kind == "prepare":
        recipe, output = flag("--recipe", stage.arguments), flag("--output", stage.arguments)
        return ["-m", "data_prep.prepare", "--recipe", recipe, "--output", output, "--stage", "check"]
    if stage.kind == "export":
        return None
    if stage.kind == "evaluate":
        return ["-m", "train.evaluate", "--dry_run", *stage.arguments]
    if not is_first:  # its data is not there yet
        return ["-c", DESCRIBE, *stage.arguments]
    launch = ["--accelerate_config", site.launch_file, "--num_processes", str(site.world_size)]
    return ["-m", "train.preflight", *launch, *stage.arguments]


def _run(here, stage, command):
    """What the command prints; '' where it could not check."""
    code, out, errors = here.run(["python", *command], timeout=_SECONDS)
    if code in _CANNOT_TELL or (code and not (out + errors).strip()):
        complain("{} is not checked before the submission: {}".format(stage.kind, errors.strip() or code))
        return ""
    if code:
        _refuse(stage, (errors or out).strip())
    return out


def _refuse(stage, problem):
    if problem:
        raise Refusal("{} is refused, nothing is submitted:\n{}".format(stage.kind, problem), 2)


# The run as train.sft itself reads it; a mistake in the run config ends it.
DESCRIBE = """
import json, sys
from train.config.run_config import load_run_config
try:
    config = load_run_config(sys.argv[1:])
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
names = {"data": str(config.own.data), "model": str(config.model["model_name_or_path"])}
print(json.dumps({"output_dir": str(config.sft["output_dir"]), **names}))
"""
