"""`packhaul submit` starts slurm/submit.sh, and says where it has looked."""

from __future__ import annotations

import sys

import pytest

from packhaul import submit
from packhaul.command import main
from tests.conftest import ROOT


def write_script(folder):
    script = folder / "slurm" / "submit.sh"
    script.parent.mkdir(parents=True)
    script.write_text('#!/bin/sh\necho "$@" > words\nexit 9\n')
    script.chmod(0o755)


def test_the_words_and_the_exit_code_go_through(tmp_path, monkeypatch):
    write_script(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["packhaul"])
    monkeypatch.chdir(below)
    assert main(["submit", "train", "--config", "한국어.yaml"]) == 9
    assert (below / "words").read_text(encoding="utf-8") == "train --config 한국어.yaml\n"


def test_next_to_the_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert submit.find_script() == ROOT / "slurm" / "submit.sh"


def test_absent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["packhaul"])
    monkeypatch.setattr(submit, "_BESIDE", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["submit", "train"])
    assert end.value.code == 2
    assert f"there is no slurm/submit.sh in {tmp_path} and the folders above it, nor in " in capsys.readouterr().err
