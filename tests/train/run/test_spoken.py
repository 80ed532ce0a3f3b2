"""Every rank may speak, and what several ranks have to say is said once."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from train.run import distributed, last_words, log, spoken

HOST = socket.gethostname()
SPEAKER = """
import logging, sys
from train.run import last_words, log, spoken
log.set_up()
spoken.PATIENCE = 1.0
kind = sys.argv[1]
if kind == "warning":
    logging.getLogger("train.loop").warning("late")
    log.finish()
elif kind == "traceback":
    try:
        raise KeyError("no such tensor")
    except KeyError as error:
        last_words.show_traceback(error)
else:
    sys.exit(last_words.refuse("no model\\nat all", 2))
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing of a launch around these tests."""
    for name in ("PACKHAUL_LOG_DIR", "TORCHELASTIC_ERROR_FILE", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(spoken, "PATIENCE", 0.2)


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Become a rank of a world of four that shares a folder."""

    def become(rank: int) -> Path:
        monkeypatch.setenv("PACKHAUL_LOG_DIR", str(tmp_path))
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", str(rank))
        return tmp_path

    return become


def speak(kind: str, ranks: range, folder: Path, name: str = "PACKHAUL_LOG_DIR") -> str:
    """What processes say that all have the same to say at the same time."""
    processes = []
    for rank in ranks:
        place = str(folder) if name == "PACKHAUL_LOG_DIR" else str(folder / str(rank) / "error.json")
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "8", name: place}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SPEAKER, kind], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
            )
        )
    return "".join(process.communicate()[1] for process in processes)


@pytest.mark.parametrize("ranks", [range(8), range(3, 8)], ids=["all", "not the first"])
@pytest.mark.parametrize("name", ["PACKHAUL_LOG_DIR", "TORCHELASTIC_ERROR_FILE"])
def test_the_same_refusal_of_many_ranks_is_one_line(ranks, name, tmp_path):
    said = speak("refusal", ranks, tmp_path, name)
    assert said.count("no model\nat all") == 1 and said.count("sft: error: ") == 1
    assert (f" on {HOST}: no model" in said) == (0 not in ranks)
    files = sorted(tmp_path.glob("error-rank*.json"))
    assert [json.loads(file.read_text())["rank"] for file in files] == list(ranks)
    written = json.loads(files[-1].read_text())
    assert written.pop("time") > 1e9
    message = {"message": "no model\nat all", "consequence": False}
    assert written == {"rank": 7, "host": HOST, "exit_code": 2, **message}


def test_a_warning_of_other_ranks_is_said_once(tmp_path):
    said = speak("warning", range(1, 4), tmp_path)
    assert said.count("late") == 1 and f" on {HOST}: late" in said and said.startswith("sft: WARNING: rank ")


def test_the_same_traceback_of_many_ranks_is_shown_once(tmp_path):
    said = speak("traceback", range(2, 5), tmp_path)
    assert said.count("Traceback") == 1 and said.count("KeyError: 'no such tensor'") == 1 and f" on {HOST}" in said


def test_what_the_first_rank_says_is_not_repeated_by_another(world, capsys):
    log.set_up()
    world(0)
    lines = logging.getLogger("train.tests")
    lines.warning("full")
    assert last_words.refuse("no data", 2) == 2
    world(2)
    lines.warning("full")
    lines.warning("slow disk")
    assert last_words.refuse("no data", 2) == 2
    assert last_words.refuse("no model here", 2) == 2
    log.finish()
    said = capsys.readouterr().err
    assert said.count("full") == said.count("no data") == 1
    assert f"sft: WARNING: rank 2 on {HOST}: slow disk\n" in said and f"sft: error: rank 2 on {HOST}: no model" in said


def test_consequences_are_said_once_whatever_their_details(world, capsys):
    log.set_up()
    folder = world(1)
    for rank in (1, 3, 0):
        world(rank)
        last_words.refuse(f"another process has ended (peer {rank})", 1, consequence=True)
    assert capsys.readouterr().err.count("another process has ended") == 2  # of the first to speak, and of rank 0
    assert json.loads((folder / "error-rank3.json").read_text())["consequence"] is True


def test_a_process_alone_needs_no_folder(capsys, tmp_path, monkeypatch):
    log.set_up()
    monkeypatch.chdir(tmp_path)
    assert last_words.refuse("no data", 2) == 2
    assert capsys.readouterr().err == "sft: error: no data\n" and not list(tmp_path.iterdir())
    monkeypatch.setenv("PACKHAUL_LOG_DIR", str(tmp_path))
    assert last_words.refuse("no data", 2) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["error-rank0.json"]


def test_a_folder_that_cannot_be_written_silences_nobody(world, monkeypatch, capsys):
    log.set_up()
    world(1)
    monkeypatch.setenv("PACKHAUL_LOG_DIR", "/proc/absent")
    assert last_words.refuse("no data", 2) == 2
    said = capsys.readouterr().err
    assert f"sft: error: rank 1 on {HOST}: no data" in said and "error-rank1.json cannot be written" in said


def test_problems_of_other_ranks_have_their_rank_and_host(monkeypatch):
    found = [("n0", ["full"]), ("n1", ["full", "slow"]), ("n2", ["slow", "gone"]), ("n3", [])]
    monkeypatch.setattr(distributed, "gather", lambda value: found)
    named = ["full", "slow (rank 1 on n1 and 1 more)", "gone (rank 2 on n2)"]
    assert distributed.gather_problems([]) == named
