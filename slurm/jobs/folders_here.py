"""The folders of a chain of stages: what one reads is there, or is made before it; what an export writes is not."""

import json
import os

from slurm.jobs.words import flag


def problem_of(stage, before, described=""):
    """What is wrong with the folders of a stage; '' where nothing is, or where it cannot be told.

    Args:
        before: the stages of the chain that run first.
        described: the run of a training, as JSON with its `data`.
    """
    if stage.kind == "export":
        read, written = flag("--checkpoint", stage.arguments), flag("--output", stage.arguments)
        return _missing("--checkpoint", read, before) or _in_the_way(written)
    if stage.kind == "train" and before:
        try:
            return _missing("data", json.loads(described)["data"], before)
        except ValueError:
            return ""
    return ""


def _missing(name, folder, before):
    made = [stage.output for stage in before if stage.kind != "evaluate"]
    if os.path.exists(folder) or not all(made):  # where a training writes may stand in a form that is not read here
        return ""
    wanted = os.path.realpath(folder)
    if any((wanted + os.sep).startswith(os.path.realpath(output) + os.sep) for output in made):
        return ""
    makes = ", and the stages before it make {}".format(", ".join(made)) if made else ""
    return "{}: there is no folder {} in {}{}".format(name, folder, os.getcwd(), makes)


def _in_the_way(output):
    if os.path.isfile(output) or (os.path.isdir(output) and os.listdir(output)):
        return "--output {} exists and is not empty: name a new folder, or remove it first".format(output)
    return ""
