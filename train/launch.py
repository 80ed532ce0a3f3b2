"""Entry: `accelerate launch`, with the same flags, that adds nothing of its own to how a run ends.

    packhaul train --launch NAME --config configs/train/X.yaml
    python -m train.launch --config_file configs/accelerate/NAME.yaml -m train.sft --config configs/train/X.yaml

`accelerate launch` prints a traceback of its own after whatever a training process has said, ends with 1 for every exit
code, and does not leave Ctrl-C to the training. Here the exit code is that of the process that failed first, Ctrl-C
reaches the training processes alone, and one line names the process that failed, unless that has said why (2, 130).
Each launcher also writes how it ended: `launch-node{N}.json` in the folder of the attempt's logs; outside of a job, of
several processes, in the folder that torch's launcher made for them (train.run.spoken.shared_folder).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.program_name import PROGRAM, speaker
from train.run.atomic_files import write_json_atomically
from train.run.spoken import LOG_DIR

EXPLAINED = (0, 2, 128 + signal.SIGINT)  # exit codes of train.sft after which its own message says all
_QUIET = (
    "torch.distributed.elastic.multiprocessing.api",  # each process that failed, or is ended because another has
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.run",  # OMP_NUM_THREADS is 1 unless it is set
    "accelerate.commands.launch",  # what its file leaves out has a default
    "DeepSpeed",  # there is no GPU: train.sft says so where one was meant
)
_OTHERS = "SIGTERM,SIGHUP,SIGQUIT"  # torch's launcher passes these on; after SIGINT it would kill a save of 30 s


@dataclass(frozen=True, kw_only=True)
class End:
    """How the processes of this node ended."""

    code: int  # of the process that failed first, -N for one that signal N ended
    who: str
    rank: int | None = None  # where a single process is to blame
    folder: Path | None = None  # that torch's launcher made for several processes

    @property
    def exit_code(self) -> int:
        """For a shell."""
        return 128 - self.code if self.code < 0 else self.code


def main(argv: list[str] | None = None) -> int:
    """The exit code of the training: that of the process that failed first, 128 + N for one that signal N ended."""
    end = End(code=1, who="the launcher, by an error of its own")
    try:
        end = _launch(argv)
    except SystemExit as error:  # its flags, or --help
        end = End(code=error.code if isinstance(error.code, int) else 1, who="the launcher, by its flags")
        raise
    finally:
        _write_down(end)
    return _say(end)


def _launch(argv: list[str] | None) -> End:
    from accelerate.commands.launch import launch_command, launch_command_parser

    args = launch_command_parser().parse_args(argv)
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", _OTHERS)
    for name in _QUIET:
        logging.getLogger(name).addFilter(lambda record: False)
    signal.signal(signal.SIGINT, _pass_on)
    return _run(lambda: launch_command(args)) if os.environ.get(LOG_DIR) else _run_with_folder(launch_command, args)


def _run_with_folder(launch_command: Callable[[Any], None], args: Any) -> End:
    """With a folder for what is known of the end, where no job has one: it stays where a run fails."""
    own = None if args.log_dir else tempfile.mkdtemp(prefix=f"{PROGRAM}_")
    args.log_dir, folder = args.log_dir or own, None
    try:
        end = _run(lambda: launch_command(args))
        if end.code not in (0, 128 + signal.SIGINT):
            folder = _newest(Path(args.log_dir).glob("*/attempt_*"))  # a user's own folder has those of earlier runs
    finally:
        if own and folder is None:
            shutil.rmtree(own, ignore_errors=True)
    return dataclasses.replace(end, folder=folder)


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def _run(launch: Callable[[], None]) -> End:
    try:
        launch()
    except subprocess.CalledProcessError as error:
        return End(code=error.returncode, who="the training process", rank=0)
    except Exception as error:
        if type(error).__name__ == "SignalException":  # passed on to the training, and that has ended
            return End(code=-int(error.sigval), who="the launcher")  # type: ignore[attr-defined]
        if type(error).__name__ != "ChildFailedError":
            raise
        return _first_failure(error)
    return End(code=0, who="all processes")


def _pass_on(number: int, frame: Any) -> None:
    """Ctrl-C to the training processes, which torch's launcher keeps apart from the terminal."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


def _first_failure(error: Any) -> End:
    """The process that failed first."""
    rank, failure = error.get_first_failure()
    who = f"rank {rank} (local rank {failure.local_rank}, process {failure.pid})"
    return End(code=failure.exitcode, who=who, rank=rank)


def _say(end: End) -> int:
    """The exit code for a shell, after a line about a failure that may not have been explained."""
    if end.code not in EXPLAINED:
        named = f"was ended by {signal.Signals(-end.code).name}" if end.code < 0 else ""
        how = named or f"failed with exit code {end.code}"
        print(
            f"{speaker('train.launch')}: {end.who} {how}, before any other: its last lines above have the cause",
            file=sys.stderr,
        )
    return end.exit_code


def _write_down(end: End) -> None:
    """Write `launch-node{N}.json` for the job's script, which reads it after the attempt, and for the next start."""
    folder, node = os.environ.get(LOG_DIR) or end.folder, int(os.environ.get("SLURM_NODEID", "0"))
    if not folder:
        return
    content = {"time": time.time(), "node": node, "host": socket.gethostname(), "exit_code": end.exit_code}
    path = Path(folder) / f"launch-node{node}.json"
    try:
        write_json_atomically(path, {**content, "rank": end.rank, "who": end.who})
    except OSError as error:
        print(f"{speaker('train.launch')}: {path} cannot be written: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
