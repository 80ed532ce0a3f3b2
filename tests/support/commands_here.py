"""Commands of this project that a benchmark starts, run in the process of the test: their imports are there already."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.support.in_process import as_a_fresh_process
from tests.support.saving_runs import run_here

ALONE = ["--expected_world_size", "1", "--expected_distributed_type", "NO"]


def run_module(command: list[Any]) -> tuple[int, str]:
    """The exit code and standard output of `[launcher] -m MODULE ARGUMENTS`; a launcher's processes become this one.

    Raises:
        AssertionError: it is no command of this project.
    """
    words = [str(word) for word in command]
    assert Path(words[0]).parent == Path(sys.executable).parent, words
    check_launcher(words)
    at = len(words) - words[::-1].index("-m")
    name, arguments = words[at], words[at + 1 :]
    assert name.split(".")[0] in ("data_prep", "train", "packhaul", "tests"), words
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = train(arguments) if name == "train.sft" else call(name, arguments)
    return code, out.getvalue()


def check_launcher(words: list[str]) -> None:
    """accelerate itself takes the arguments, and its config file is there."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    if words[1] == "launch":
        arguments = words[2:]
    elif words[1:3] == ["-m", "accelerate.commands.launch"]:
        arguments = words[3:]
    else:
        return
    previous = Path.cwd()
    os.chdir(ROOT)  # as the benchmarks start it
    try:
        _validate_launch_command(launch_command_parser().parse_args(arguments))
    finally:
        os.chdir(previous)


def train(arguments: list[str]) -> int:
    """`train.sft --config FILE ...` as the only process."""
    assert arguments[0] == "--config", arguments
    return run_here(Path(arguments[1]), *arguments[2:], *ALONE)


def call(name: str, arguments: list[str]) -> int:
    """A module's `main`, as `python -m` would start it."""
    with as_a_fresh_process():
        try:
            return importlib.import_module(name).main(arguments) or 0
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1


class Here:
    """What a benchmark uses of `subprocess`."""

    PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
    CalledProcessError, TimeoutExpired = subprocess.CalledProcessError, subprocess.TimeoutExpired

    @staticmethod
    def run(command: list[Any], *, check: bool = False, **_: Any) -> subprocess.CompletedProcess[str]:
        """As subprocess.run; standard output is kept."""
        code, said = run_module(command)
        if check and code:
            raise subprocess.CalledProcessError(code, command, said)
        return subprocess.CompletedProcess(command, code, said, "")

    class Popen:
        """A process that has ended when it is made."""

        def __init__(self, command: list[Any], **_: Any):
            self.pid = os.getpid()
            self.returncode, said = run_module(command)
            self.stdout = io.StringIO(said)

        def poll(self) -> int:
            return self.returncode

        def wait(self, timeout: float | None = None) -> int:
            return self.returncode

        def __enter__(self) -> Here.Popen:
            return self

        def __exit__(self, *_: Any) -> None:
            pass
