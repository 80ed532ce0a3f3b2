"""`accelerate launch` in one process's place: exit codes, and what is said about a failure."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands import launch as accelerates
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from train import launch
from train.run import starts

ARGUMENTS = ["--config_file", "configs/accelerate/cpu_zero2.yaml", "-m", "train.sft", "--config", "x.yaml"]


@pytest.fixture
def ends_with(monkeypatch):
    """Run with a launcher that raises; the exit code."""

    def run(error):
        def launch_command(args):
            assert args.module and args.training_script_args == ["--config", "x.yaml"]
            if error:
                raise error

        monkeypatch.setattr(accelerates, "launch_command", launch_command)
        monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
        return launch.main(ARGUMENTS)

    return run


def failures(*codes):
    made = {rank: SimpleNamespace(exitcode=code, local_rank=rank, pid=100 + rank) for rank, code in enumerate(codes)}
    for rank, failure in made.items():
        failure.timestamp = -rank  # the last rank failed first
    error = ChildFailedError.__new__(ChildFailedError)
    error.name, error.failures = "train.sft", made
    return error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (subprocess.CalledProcessError(2, "x"), 2, ""),
        (subprocess.CalledProcessError(130, "x"), 130, ""),
        (subprocess.CalledProcessError(1, "x"), 1, "launch: the training process failed with exit code 1, before"),
        (subprocess.CalledProcessError(-9, "x"), 137, "launch: the training process was ended by SIGKILL, before"),
        (failures(-15, 2), 2, ""),
        (failures(-15, 1), 1, "launch: rank 1 (local rank 1, process 101) failed with exit code 1, before any other"),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(error, code, said, ends_with, capsys):
    assert ends_with(error) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == (1 if said else 0)


def test_an_error_of_the_launcher_itself_is_shown(ends_with):
    with pytest.raises(ValueError, match="no such file"):
        ends_with(ValueError("no such file"))


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (None, {"exit_code": 0, "rank": None, "who": "all processes"}),
        (subprocess.CalledProcessError(-9, "x"), {"exit_code": 137, "rank": 0, "who": "the training process"}),
        (failures(-15, 1), {"exit_code": 1, "rank": 1, "who": "rank 1 (local rank 1, process 101)"}),
        (SignalException("x", signal.SIGTERM), {"exit_code": 143, "rank": None, "who": "the launcher"}),
        (ValueError("x"), {"exit_code": 1, "rank": None, "who": "the launcher, by an error of its own"}),
        (SystemExit(2), {"exit_code": 2, "rank": None, "who": "the launcher, by its flags"}),
    ],
)
def test_the_end_is_written_down_for_the_job(error, written, ends_with, tmp_path, monkeypatch):
    monkeypatch.setenv("PACKHAUL_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("SLURM_NODEID", "3")
    if isinstance(error, (ValueError, SystemExit)):
        with pytest.raises(type(error)):
            ends_with(error)
    else:
        assert ends_with(error) == written["exit_code"]
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert file.name == "launch-node3.json" and found.pop("time") > 1e9 and found.pop("host")
    assert found == {"node": 3, **written}


def launched_outside_of_a_job(monkeypatch, tmp_path, error):
    """The exit code, and the folder that torch's launcher made for its processes."""
    made = []

    def launch_command(args):
        made.append(Path(args.log_dir) / "none_x/attempt_0")
        (made[0] / "0").mkdir(parents=True)
        if error:
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(made[0] / "0/error.json"))
            starts.begin(tmp_path, 2)
            starts.end(starts.FAILED, "the connection was closed", consequence=True)
            raise error

    monkeypatch.delenv("PACKHAUL_LOG_DIR", raising=False)
    monkeypatch.setattr(accelerates, "launch_command", launch_command)
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    return launch.main(ARGUMENTS), made[0]


def test_outside_of_a_job_the_next_start_names_who_was_killed(tmp_path, monkeypatch):
    code, folder = launched_outside_of_a_job(monkeypatch, tmp_path, failures(-15, -9))
    (first,) = starts.read_starts(tmp_path)
    cause = starts.left_behind(first, tmp_path)["cause"]
    assert code == 137
    assert re.fullmatch(r"rank 1 \(local rank 1, process 101\) on .* was killed by SIGKILL \(out of memory\?\)", cause)
    shutil.rmtree(folder.parents[1])


def test_a_run_that_ends_well_leaves_no_folder(tmp_path, monkeypatch):
    code, folder = launched_outside_of_a_job(monkeypatch, tmp_path, None)
    assert code == 0 and not folder.parents[1].exists()
