"""The folder of a submission: what a job reads at its start and at every requeue, as it was when it was submitted.

slurm/logs/NAME/submissions/TIME/
    env.sh               all values of slurm/env.sh as they were, and its functions
    run.yaml             what --config names (recipe.yaml: --recipe)
    accelerate.yaml      the launch file, which names deepspeed.json beside it
    submission.json      when, by which command, the commit and a digest of each file of code
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

from slurm.jobs.words import flag, make_folder, replaced, say, without

RECORD = "submission.json"
_BYTES = {"encoding": sys.getfilesystemencoding(), "errors": "surrogateescape"}  # come out as they went in
_CODE = ("train", "data_prep", "slurm")
_LOGS = os.path.join("slurm", "logs")
# Besides PACKHAUL_*: what env.sh may set or its comments name.
_OTHERS = re.compile(
    r"(HF_HOME|HF_HUB_OFFLINE|TORCH_EXTENSIONS_DIR|WANDB_MODE|WANDB_PROJECT|WANDB_ENTITY|OMP_NUM_THREADS)$"
    r"|(NCCL|GLOO|TORCH_NCCL|TORCH_FR|UCX|FI)_"
)
_LAUNCH_LINE = re.compile(r"^(\s*deepspeed_config_file:\s*)(\S+)(.*)$", re.MULTILINE)
_FILE_WORDS = re.compile(r"[\w./~-]+\.(?:jinja|py|json|yaml|txt)\b")


class Submission:
    """A folder with copies, and a stage's arguments that name these."""

    def __init__(self, folder, arguments):
        self.folder = folder
        self.arguments = arguments


def make(site, stage, arguments, logs):
    """Copy what a job of this stage will read. An interrupted one is a folder that no job names.

    Args:
        stage: prepare, train, export or evaluate.
        logs: the folder of the logs of this run, such as slurm/logs/train-NAME.
    """
    folder = _new_folder(os.path.join(logs, "submissions"))
    rest, named = list(arguments), []
    for name, copy in (("--config", "run.yaml"), ("--recipe", "recipe.yaml")):
        original = flag(name, arguments)
        if original:
            shutil.copyfile(original, os.path.join(folder, copy))
            named += _files_within(original)
            rest = replaced(name, os.path.join(folder, copy), rest)
    if stage == "train":
        _copy_launch_files(site, folder)
    _write_env(site, folder)
    record = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": ["slurm/submit.sh", stage, *arguments],
        "commit": commit(),
        "code": code_digests(named),
    }
    with open(os.path.join(folder, RECORD), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)  # ASCII: an argument may hold bytes that are no text
    return Submission(folder, rest)


def _new_folder(parent):
    make_folder(parent)
    name = os.path.join(parent, time.strftime("%Y%m%d-%H%M%S"))
    for number in range(1, 1000):
        folder = name if number == 1 else "{}-{}".format(name, number)
        try:
            os.mkdir(folder)
        except FileExistsError:
            continue
        return folder
    raise RuntimeError("{}: a thousand submissions in one second".format(parent))


def _copy_launch_files(site, folder):
    """The launch file, naming the copy of its DeepSpeed file."""
    with open(site.launch_file, encoding="utf-8") as file:
        text = file.read()
    line = _LAUNCH_LINE.search(text)
    original = line.group(2).strip("'\"") if line else ""
    if os.path.isfile(original):
        copy = os.path.join(folder, "deepspeed.json")
        shutil.copyfile(original, copy)
        text = text[: line.start()] + line.group(1) + copy + line.group(3) + text[line.end() :]
    with open(os.path.join(folder, "accelerate.yaml"), "w", encoding="utf-8") as file:
        file.write(text)


def _write_env(site, folder):
    """The values first, so that they win over the defaults of the copy that follows."""
    values = {name: value for name, value in os.environ.items() if name.startswith("PACKHAUL_") or _OTHERS.match(name)}
    with open(site.env_file, **_BYTES) as file:
        body = file.read()
    with open(os.path.join(folder, "env.sh"), "w", **_BYTES) as file:
        file.write("# shellcheck shell=bash\n# As it was at the submission.\n")
        for name in sorted(values):
            file.write("export {}={}\n".format(name, shlex.quote(values[name])))
        file.write("\n" + body)


def _files_within(path):
    """Files that a recipe or run config names, such as a template or a transform."""
    with open(path, encoding="utf-8", errors="replace") as file:
        words = _FILE_WORDS.findall(file.read())
    return sorted({word for word in words if os.path.isfile(word)})


def commit():
    """The code's commit; None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def code_digests(more=()):
    """SHA-256 by file, of all code and of the files that are named besides."""
    files = list(more)
    for top in _CODE:
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if os.path.join(folder, name) != _LOGS]  # may be very many
            files += [
                os.path.join(folder, name) for name in names if name.endswith((".py", ".jinja", ".sh", ".sbatch"))
            ]
    return {name: _digest(name) for name in sorted(set(files))}


def _digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def original_arguments(folder):
    """The arguments that were given to submit.sh, but for the part of a chain that they pick; None without a record."""
    try:
        command = _record(folder)["command"]
    except (OSError, ValueError):
        return None
    return [word for word in without(("--from", "--array"), command[2:]) if word != "--only"]


def say_changes(site):
    """A line in the job's log where the code, or a file that was named, is another than at the submission."""
    line = changes(site.text("SUBMISSION")) if site.text("SUBMISSION") else ""
    if line:
        say(line)


def changes(folder):
    """What is no longer as it was at the submission: a line for the log, '' where nothing has changed."""
    try:
        record = _record(folder)
    except (OSError, ValueError) as error:
        return "{}: not readable ({}): what has changed since the submission is not known".format(folder, error)
    before = record["code"]
    now = code_digests(before)
    changed = sorted(name for name in set(before) | set(now) if before.get(name) != now.get(name))
    if not changed:
        return ""
    shown = ", ".join(changed[:5]) + (", and {} more".format(len(changed) - 5) if len(changed) > 5 else "")
    here = commit()
    moved = " (commit {}, now {})".format(_short(record["commit"]), _short(here)) if here != record["commit"] else ""
    return "since the submission {} file(s) have changed{}: {}".format(len(changed), moved, shown)


def _record(folder):
    with open(os.path.join(folder, RECORD), encoding="utf-8") as file:
        return json.load(file)


def _short(name):
    return name[:10] if name else "none"
