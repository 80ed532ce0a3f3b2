"""`packhaul train`: which launch file, how many processes, and what the launcher is given."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from packhaul import training
from packhaul.command import main
from tests.conftest import ROOT
from train import launch
from train.node_check import amd, nvidia
from train.node_check.nvidia import Listed


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["packhaul"])
    monkeypatch.chdir(ROOT)


@pytest.fixture
def gpus(monkeypatch):
    """Let the driver list this number of GPUs."""

    def set_number(number):
        listed = [Listed(f"GPU-{i}", "0", "x", "1", 0) for i in range(number)]
        monkeypatch.setattr(nvidia, "list_gpus", lambda: listed)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return set_number


@pytest.fixture
def launched(monkeypatch):
    given = []
    monkeypatch.setattr(launch, "main", lambda words: given.append(words) or 77)
    return given


def test_the_launcher_gets_the_file_the_gpus_and_the_run_s_flags(gpus, launched):
    gpus(4)
    assert main(["train", "--launch", "zero3", "--config", "x.yaml", "--seed=3"]) == 77
    words = ["--config_file", "configs/accelerate/zero3.yaml", "--num_processes", "4", "-m", "train.sft"]
    assert launched == [[*words, "--config", "x.yaml", "--seed=3"]]
    assert os.environ["PACKHAUL_STARTED_AS"] == "packhaul train"


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("zero2", 3, ["--num_processes", "3"]),
        ("cpu_zero2", None, []),
        ("cpu_zero2", 4, ["--num_processes", "4"]),
        ("single_gpu", None, []),
        ("configs/accelerate/fsdp2.yaml", None, ["--num_processes", "2"]),
    ],
)
def test_number_of_processes(name, number, words, gpus):
    gpus(2)
    assert training.launch_words(name, number)[2:] == words


def test_gpus_are_those_that_the_environment_names(gpus, monkeypatch):
    gpus(8)
    assert training.count_gpus() == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert training.count_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert training.count_gpus() == 0


def absent():
    raise FileNotFoundError


def silent():
    raise nvidia.Hangs("nvidia-smi does not answer within 60 s")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--launch", "zero33"], "no such launch file; did you mean zero3? There are: cpu_single, cpu_zero1,"),
        (["--launch", "zero3"], "is for GPUs, and none was found here: give --num_processes N, or take a cpu_*"),
        (["--launch", "zero3_multinode"], "is for several machines"),
        (["--launch", "absent/x.yaml"], "absent/x.yaml: no such file"),
        (["--launch"], "--launch: expected a value after it"),
        (["--launch", "zero3", "--num_processes", "0"], "expected a whole number of 1 or more, found '0'"),
        (["--num_processes", "2"], "--num_processes does nothing without --launch"),
        (["--launch", "zero2", "--launch", "zero3"], "--launch: given twice"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_launched_is_refused(words, said, launched, monkeypatch, capsys):
    monkeypatch.setattr(nvidia, "list_gpus", absent)
    monkeypatch.setattr(amd, "list_gpus", absent)
    with pytest.raises(SystemExit) as end:
        main(["train", *words, "--config", "x.yaml"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("packhaul train: error: ") and said in error
    assert error.count("\n") == 1 and not launched


def test_a_driver_that_hangs_is_named(monkeypatch):
    monkeypatch.setattr(nvidia, "list_gpus", silent)
    with pytest.raises(ValueError, match="does not answer within 60 s: give --num_processes N"):
        training.count_gpus()


def test_elsewhere_the_message_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder configs/accelerate in .*start in the repository's root"):
        training.launch_file("zero3")


def test_without_launch_it_is_one_process(monkeypatch):
    given = {}
    fake = SimpleNamespace(main=lambda argv, **options: given.update(options, argv=argv) or 5)
    monkeypatch.setitem(sys.modules, "train.sft", fake)
    monkeypatch.setattr("train.run.ending.end_here", lambda held: given.update(ended=held))
    assert main(["train", "--config", "x.yaml"]) == 5
    assert given["argv"] == ["--config", "x.yaml"] and given["own_process"] and given["held"] is given["ended"]


def test_help_lists_the_launch_flags_and_the_run_s_options(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--launch NAME" in out and "--learning_rate float" in out


@pytest.mark.launch
def test_a_refusal_inside_the_launched_processes_is_one_message(tmp_path):
    """Two real processes: said once, no traceback, exit code 2."""
    import subprocess

    words = ["train", "--launch", "cpu_zero2", "--config", "configs/train/quickstart.yaml", "--data", "absent"]
    done = subprocess.run(
        [sys.executable, "-m", "packhaul", *words, "--output_dir", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("absent: no such directory") == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("packhaul train: error: ") and "sft: " not in done.stderr
