"""The command `packhaul NAME ...`: finds the entry that the name stands for, and starts it in this process."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.program_name import PROGRAM

REFUSED = 2
_STOPPED = 128 + signal.SIGINT
_NOBODY_READS = 128 + signal.SIGPIPE


@dataclass(frozen=True)
class Command:
    """One entry: its module, whose `main` takes the words after the name, and what it does."""

    module: str
    line: str
    main: str = "main"


COMMANDS = {
    "prepare": Command("data_prep.prepare", "raw instruction data -> packed, pre-tokenized shards", "main_of_process"),
    "inspect": Command("data_prep.inspect_shards", "verify a shard directory and show what the model will see"),
    "preflight": Command("train.preflight", "check a run before a GPU is held"),
    "train": Command("packhaul.training", "train: one process, or several with --launch NAME; again to resume"),
    "checkpoint": Command("train.checkpoint.__main__", "list, verify and prune the checkpoints of a run"),
    "export": Command("train.export", "a run or a checkpoint -> a Hugging Face folder, proven to be that model"),
    "generate": Command("train.generate", "answers of a model, or of several next to each other; a conversation"),
    "evaluate": Command("train.evaluate", "benchmarks of an export by lm-evaluation-harness"),
    "add-tokens": Command("train.add_tokens", "give a model rows for the tokens of the shards' tokenizer"),
    "check-nodes": Command("train.check_nodes", "check the GPUs of this machine, or the nodes of a job"),
    "report": Command("train.report", "one page of a run or several: losses, speed, answers, options"),
    "score": Command("train.score", "the loss of each document under a model; the worst ones show wrong labels"),
    "trace": Command("train.trace", "which documents a step trained, and when a document was trained"),
    "diff": Command("data_prep.diff_shards", "what differs between two shard directories: recipe, counts, documents"),
    "schema": Command("packhaul.schema", "print the JSON Schema of a recipe or a run config, for editors"),
    "submit": Command("packhaul.submit", "submit prepare, train, export and evaluate to SLURM"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; 2 for a name that there is not. Exit codes: docs/commands.md."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # such as of `packhaul --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails at its end
        return _NOBODY_READS
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: stopped by Ctrl-C", file=sys.stderr)
        return _STOPPED
    return code


def _run(words: list[str]) -> int:
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0 if words else REFUSED
    if name in ("-V", "--version"):
        print(f"{PROGRAM} {_version()}")
        return 0
    if name not in COMMANDS:
        print(f"{PROGRAM}: error: {_unknown(name)}", file=sys.stderr)
        return REFUSED
    if str(Path.cwd()) not in sys.path and not sys.flags.safe_path:
        sys.path.append(str(Path.cwd()))  # as python -m has it: functions that a recipe names; behind what is installed
    sys.argv = [f"{PROGRAM} {name}", *rest]  # what a command calls itself: data_prep.program_name
    entry = getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].main)
    return entry(rest) or 0


def help_text() -> str:
    """All commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: {PROGRAM} COMMAND ...", "", "Instruction data in, fine-tuned model out.", ""]
    lines += [f"  {name:<{width}}  {command.line}" for name, command in COMMANDS.items()]
    lines += ["", f"`{PROGRAM} COMMAND --help` lists a command's flags, `{PROGRAM} --version` shows the version."]
    return "\n".join(lines)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, list(COMMANDS), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
    return f"unknown command {name!r}; {hint}"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "(from its sources, not installed)"
