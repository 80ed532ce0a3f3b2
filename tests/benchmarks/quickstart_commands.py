"""Running the commands of the quickstart: whole output to a log, progress to the screen, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.compiled_operators import compile_once

STEP_LIMIT = 1200  # seconds for one command: what takes longer hangs


def run(name: str, command: list[str], output: Path) -> None:
    """Run one command of the path; its whole output goes to `logs/`, its progress to the screen.

    Raises:
        ValueError: it failed, or took longer than STEP_LIMIT; with the end of its log.
    """
    log = output / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    started, cpu = time.monotonic(), cpu_seconds()
    print(f"{name:<10} started; log in {log}")
    code = _run_logged(command, log)
    if code:
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-25:])
        raise ValueError(f"{name} failed with exit code {code}: {' '.join(command)}\n{tail}(log: {log})")
    print(f"{name:<10} done in {time.monotonic() - started:.0f} s ({cpu_seconds() - cpu:.0f} s of CPU time)")


def _run_logged(command: list[str], log: Path) -> int:
    """The exit code; nothing that the command started outlives this call."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, **pipes, text=True, errors="replace", start_new_session=True) as process,
    ):
        timer = threading.Timer(STEP_LIMIT, _end, [process])
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                _echo_progress(line)
            return process.wait()
        finally:
            timer.cancel()
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the command if it still runs. SIGTERM first: the launcher then ends its ranks, which are in other groups."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _echo_progress(line: str) -> None:
    """The trainer's log lines, in short."""
    found = re.match(r"\{'(loss|eval_loss)': '?([0-9.]+).*'epoch': '?([0-9.]+)", line)
    if found:
        kind = found[1].replace("_", " ")
        print(f"           {float(found[3]):>4.0%}  {kind} {float(found[2]):.3f}")


def environment() -> dict[str, str]:
    """What every command runs with."""
    compile_once()
    return {
        "CUDA_VISIBLE_DEVICES": "",  # the same on a machine with a GPU
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",  # two processes on two cores; the same sums on every machine
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # DeepSpeed compiles with `ninja`, which lies beside the interpreter; the environment need not be activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def module(name: str) -> list[str]:
    """`python -m name`, with this interpreter."""
    return [sys.executable, "-m", name]


def flags(**values: Any) -> list[str]:
    """`--name value` for each."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds() -> float:
    """CPU time so far of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
