"""Runs the stages of tests.gpu.stages, most valuable first, each in a process of its own, within a number of seconds.

    OUT=FOLDER python -m tests.gpu.run SECONDS [STAGE...]      # on a GPU machine, by tests/gpu/run.sh
    OUT=FOLDER python -m tests.gpu.run --rehearse SECONDS      # on a CPU: tiny models, and a stand-in for the kernel

`$OUT/figures.jsonl` gets a line with the machine, then one for each stage as it ends: `stage`, `code`, `seconds`,
`result`, which holds what the stage had found, also if it failed or ran out of time. `$OUT/log.txt` gets all that the
stages print. A stage that fails costs no other. Called again, with the same commit, it goes on with the stages that
have not ended with 0; `--state FOLDER` remembers them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import re
import runpy
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu import figures
from tests.gpu.stages import Stage, chosen

ROOT = Path(__file__).resolve().parent.parent.parent
COMMIT = ROOT / ".whl" / "COMMIT"  # written by tests.gpu.carry: the tree may travel without .git
SEGMENTS = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
SHARED = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
SHARED |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # read once in a process, at its first matrix product
REHEARSED = {"PACKHAUL_REHEARSAL": "1", "OMP_NUM_THREADS": "1"}
PROBE = "import torch; torch.zeros(2**28, device='cuda').sum().item(); print(torch.cuda.get_device_name())"
PR_SET_PDEATHSIG = 1  # prctl(2): the signal for a process whose parent has ended
OVER = 124  # exit code of a stage whose time was over, as of timeout(1)


def main(argv: list[str] | None = None) -> int:
    """All stages that are asked for and have not ended well; 0 if none is left that has not."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, help="for all stages together")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="names of tests.gpu.stages; default: all")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--state", type=Path, default=Path.home() / ".packhaul_gpu")
    asked = parser.parse_args(argv)
    try:
        stages = list(chosen(asked.stages))
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stage that runs, too
    call = Call(Path(os.environ.get("OUT", "runs/gpu")), asked.state, asked.rehearse, begun + asked.seconds)
    for stage in stages:
        if stage.name not in call.ended_well():
            call.run(stage)
    left = [stage.name for stage in stages if stage.name not in call.ended_well()]
    print(f"not ended well: {', '.join(left)}" if left else "all stages ended well", flush=True)
    return int(bool(left))


class Call:
    """One call: where its figures go, what an earlier one has done, and how long it may last."""

    def __init__(self, out: Path, state: Path, rehearsed: bool, deadline: float) -> None:
        self.out, self.rehearsed, self.deadline = out.resolve(), rehearsed, deadline
        self.out.mkdir(parents=True, exist_ok=True)
        state.mkdir(parents=True, exist_ok=True)
        self.figures, self.log = self.out / "figures.jsonl", self.out / "log.txt"
        self.environment = {**os.environ, **SHARED, **(REHEARSED if rehearsed else {})}
        self.environment.setdefault("TORCH_EXTENSIONS_DIR", str(state.resolve() / "torch_extensions"))
        found = machine(rehearsed)
        figures.append(self.figures, found)
        self.done = state / f"done-{re.sub(r'[^0-9a-z]+', '-', found['commit'])}{'-rehearsal' * rehearsed}.jsonl"
        if rehearsed:
            os.environ |= REHEARSED  # read by torch as it is imported
            import_once()
        elif self._run(["-c", PROBE], SEGMENTS, 90, self.out / "probe.jsonl") == 0:
            self.environment |= SEGMENTS

    def ended_well(self) -> set[str]:
        """Names of stages that have ended with 0, in this call or an earlier one."""
        return {entry["stage"] for entry in figures.read(self.done)}

    def run(self, stage: Stage) -> None:
        """One stage within its limit and what is left; its figures are on the disk when this returns."""
        left = self.deadline - time.monotonic()
        if left < (5 if self.rehearsed else stage.estimate):
            reason = f"{left:.0f} s are left, it needs about {stage.estimate}"
            figures.append(self.figures, {"stage": stage.name, "skipped": reason})
            print(f"{stage.name}: skipped: {reason}", flush=True)
            return
        begun, found = time.monotonic(), self.out / f"{stage.name}.part.jsonl"
        found.unlink(missing_ok=True)
        command = [
            part.replace("PROFILE", str(self.out / f"{stage.name}.txt")) for part in stage.command(self.rehearsed)
        ]
        limit = left if self.rehearsed else min(stage.limit, left)  # limits are those of a GPU
        code = self._run(command, stage.environment, limit, found)
        entry = {"stage": stage.name, "code": code, "seconds": round(time.monotonic() - begun, 1)}
        figures.append(self.figures, {**entry, "result": figures.merged(found)})
        if code == 0:
            figures.append(self.done, entry)
        found.unlink(missing_ok=True)
        print(f"{self.deadline - time.monotonic():.0f} s left: {describe(stage, entry)}", flush=True)
        if code:
            print(tail(self.log), flush=True)

    def _run(self, arguments: list[str], environment: dict[str, str], limit: float, found: Path) -> int:
        """Exit code of Python with these arguments; negative: ended by that signal."""
        figures_file = {figures.OWN_FILE: str(found)}
        given = (arguments, {**self.environment, **environment, **figures_file}, self.log, self.rehearsed)
        process = multiprocessing.get_context("fork").Process(target=start, args=given)
        process.start()
        try:
            end = time.monotonic() + limit
            while process.is_alive() and time.monotonic() < end:
                time.sleep(0.05)  # join(limit) would wait for ever: its pipe is closed when the process becomes Python
            over = process.is_alive()
        finally:
            end_family(process.pid)
        process.join()
        if over:
            with self.log.open("a") as log:
                print(f"=== ended after {limit:.0f} s: its time was over", file=log)
        return OVER if over else process.exitcode or 0


def start(arguments: list[str], environment: dict[str, str], log: Path, rehearsed: bool) -> None:
    """In a new process: output into the log, then Python with these arguments.

    A rehearsal goes on in this process, which has imported the libraries; the module and its arguments are the same.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it would keep the GPU when the next call begins
    os.setsid()
    with log.open("ab") as file:
        file.write(f"=== python {' '.join(arguments)}\n".encode())
        file.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    if not rehearsed or "accelerate.commands.launch" in arguments:
        os.execve(sys.executable, [sys.executable, *arguments], environment)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def import_once() -> None:
    """What the stages of a rehearsal import, each of which is then a copy of this process."""
    import trl.trainer.sft_trainer  # noqa: F401
    from transformers import conversion_mapping

    import train.loop.setup
    import train.loop.trainer  # noqa: F401

    conversion_mapping.get_checkpoint_conversion_mapping("qwen3")  # a table that is made once for all models
    gc.collect()
    gc.freeze()  # else each stage looks through, and so copies, all of it


def end_family(pid: int | None) -> None:
    """SIGKILL to a process and its descendants, some of which lead groups of their own: none may keep the GPU."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def machine(rehearsed: bool) -> dict[str, Any]:
    """The first line: what runs here, and what of the project."""
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        versions.setdefault(found.metadata["Name"], found.version)  # the first on the path is the one that is imported
    gpu = {"device": "CPU", "driver": None, "memory": None} if rehearsed else nvidia_smi()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "stage": "machine",
        **gpu,
        "commit": commit(),
        "date": now,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rehearsal": rehearsed,
        "versions": dict(sorted(versions.items(), key=lambda item: str(item[0]).lower())),
    }


def nvidia_smi() -> dict[str, str | None]:
    """Name, driver and memory of the GPU, without CUDA: nothing of it may be kept by this process."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
        name, driver, memory = done.stdout.splitlines()[0].split(", ")
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        return {"device": None, "driver": None, "memory": None, "error": str(error)}
    return {"device": name, "driver": driver, "memory": memory}


def commit() -> str:
    """Of the project, with a digest of changes that are not committed: as packed, or of this clone."""
    from tests.gpu.carry import state_of_tree

    return COMMIT.read_text().strip() if COMMIT.exists() and not (ROOT / ".git").exists() else state_of_tree(ROOT)


def describe(stage: Stage, entry: dict[str, Any]) -> str:
    """One line for a person."""
    end = {0: "ended well", OVER: "its time was over"}.get(entry["code"], f"exit code {entry['code']}")
    return f"{stage.name}: {end} after {entry['seconds']} s"


def tail(log: Path, lines: int = 12) -> str:
    """The end of the log: why a stage failed, where nobody can look into the file."""
    text = log.read_text(errors="replace").splitlines()
    named = [line for line in text[-400:] if re.match(r"(FAILED|ERROR) ", line)]
    return "\n".join(line[:300] for line in [*named[:20], *text[-lines:]])


if __name__ == "__main__":
    sys.exit(main())
