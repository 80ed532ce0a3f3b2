"""The stages that a command line of submit.sh asks for, and what is wrong with them."""

import hashlib
import os
import re

from slurm.jobs.words import Refusal, flag, without

KINDS = ("prepare", "train", "export", "evaluate")
PARTS = ("tokenize", "plan", "pack", "finish")  # of a preparation in tasks
ARRAYS = ("tokenize", "pack")
_USAGE = "see slurm/submit.sh --help"
# What a stage reads and writes: the flag that its name comes from, and those that must be there.
_NAMED_BY = {"prepare": "--output", "train": "--output_dir", "export": "--output", "evaluate": "--export"}
_NEEDED = {
    "prepare": ("--recipe", "--output"),
    "train": ("--config",),
    "export": ("--checkpoint", "--output"),
    "evaluate": ("--export", "--tasks"),
}
_FILES = ("--recipe", "--config")
_VALUES = {"--recipe": "FILE", "--config": "FILE", "--tasks": "TASK"}  # of all others: DIR


class Stage:
    """One stage of the command line.

    Attributes:
        kind: one of KINDS.
        name: of its jobs, such as train-example_full-3f2a: squeue shows the first eight characters, and two runs with
            other output folders have other names.
        first_part: of a preparation in tasks, where to begin.
        array: the tasks of that part, '' for all.
        only: that part alone, and not what follows.
    """

    def __init__(self, kind, arguments):
        self.kind = kind
        self.only = kind == "prepare" and "--only" in arguments
        self.arguments = [word for word in arguments if not (self.only and word == "--only")]
        first = flag("--from", arguments)
        self.first_part = PARTS[0] if first is None else first
        self.array = flag("--array", arguments) or ""

    @property
    def output(self):
        """The folder that it writes, or evaluates; '' where it is not found."""
        return flag(_NAMED_BY[self.kind], self.arguments) or (
            _output_dir(self.arguments) if self.kind == "train" else ""
        )

    @property
    def name(self):
        """See the class."""
        output = os.path.realpath(self.output or flag("--config", self.arguments) or "run")
        plain = re.sub(r"[^\w.-]", "_", os.path.basename(output))[:60]
        return "{}-{}-{}".format(self.kind, plain, hashlib.sha256(output.encode()).hexdigest()[:4])


def _output_dir(arguments):
    """As the run config says, read without a YAML parser: it gives a name and nothing else."""
    try:
        with open(flag("--config", arguments) or "", encoding="utf-8") as file:
            found = re.search(r"^output_dir:\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s#]+))", file.read(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return ""
    return next(filter(None, found.groups()), "") if found else ""


def read(words):
    """The stages, in order; `then` stands between them.

    Raises:
        Refusal: a stage that there is not.
    """
    stage = []
    for word in [*words, "then"]:
        if word != "then":
            stage.append(word)
            continue
        kind = stage[0] if stage else ""
        if kind not in KINDS:
            raise Refusal("there is no stage '{}': prepare, train, export or evaluate; {}".format(kind, _USAGE))
        yield Stage(kind, stage[1:])
        stage = []


def check(site, stage):
    """What can be told from the words alone.

    Raises:
        Refusal: a flag or its file is missing; a part of a chain cannot be picked so.
    """
    if stage.kind == "prepare":
        _check_part(site, stage)
    for name in _NEEDED[stage.kind]:
        value = flag(name, stage.arguments)
        if not value:
            raise Refusal("{} {} is missing; {}".format(name, _VALUES.get(name, "DIR"), _USAGE))
        if name in _FILES and not os.path.isfile(value):
            raise Refusal("{}: there is no file {} in {}".format(name, value, os.getcwd()))


def _check_part(site, stage):
    """The flags that pick a part of the chain name one, and nobody else sets what the chain sets."""
    if site.number("PREPARE_TASKS") == 1:
        for name in ("--from", "--array"):
            if flag(name, stage.arguments) is not None or stage.only:
                raise Refusal("{} picks a part of a chain, but PACKHAUL_PREPARE_TASKS is 1: one job".format(name))
        return
    for name in ("--stage", "--task-index", "--num-tasks"):
        if flag(name, stage.arguments) is not None:
            raise Refusal("{} is set for each job of the chain; --from and --array pick a part of it".format(name))
    if stage.first_part not in PARTS:
        raise Refusal("--from: there is no stage '{}': one of {}".format(stage.first_part, " ".join(PARTS)))
    if flag("--array", stage.arguments) is None:
        return
    if stage.first_part not in ARRAYS:
        raise Refusal("--array picks tasks of --from tokenize or pack; {} is one job".format(stage.first_part))
    if not re.match(r"\d+([,-]\d+)*$", stage.array):
        raise Refusal("--array must look like 2 or 0,4-6, found '{}'".format(stage.array))


def without_part(arguments):
    """The arguments that each job of a chain gets."""
    return without(("--from", "--array"), arguments)
