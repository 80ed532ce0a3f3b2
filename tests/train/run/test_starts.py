"""The record of each start of a run: its own words, and what others have left about its end."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from train.run import last_words, starts
from train.run.rank_states import EARLIER_HUNG, Places


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The folder of an attempt's logs, as a job names it."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setenv("PACKHAUL_LOG_DIR", str(folder))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    yield folder
    starts.end(starts.COMPLETE)  # nothing is left for the next test


def write(path, **content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False))


def test_a_start_writes_where_it_began_how_far_it_came_and_how_it_ended(tmp_path, logs, monkeypatch):
    starts.begin(tmp_path, 16, command="packhaul train")
    starts.resumed(40, 12.5)
    starts.first_step(41)
    starts.step_done(42)  # too soon to be written
    (one,) = starts.read_starts(tmp_path)
    assert (one["job"], one["restart"], one["processes"], one["logs"]) == ("17", 2, 16, str(logs))
    assert (one["from_step"], one["state_saved"], one["step"]) == (40, 12.5, 41) and "ended" not in one
    monkeypatch.setattr(starts, "ALIVE", 0.0)
    starts.step_done(43)
    assert starts.read_starts(tmp_path)[0]["step"] == 43
    starts.end(starts.SAVED, "SIGUSR1", step=44)
    starts.end(starts.FAILED, "what comes later is no news")
    (one,) = starts.read_starts(tmp_path)
    assert (one["step"], one["ended"]["how"], one["ended"]["said"]) == (44, "saved", "SIGUSR1")


def test_it_is_noted_every_half_minute_that_it_is_alive(tmp_path, logs, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(starts, "time", SimpleNamespace(time=time.time, monotonic=lambda: now))
    starts.begin(tmp_path, 1)
    for seconds, step in ((29, 1), (2, 2), (29, 3)):
        now += seconds
        starts.step_done(step)
    assert starts.read_starts(tmp_path)[0]["step"] == 2


def test_long_messages_are_cut(tmp_path, logs):
    starts.begin(tmp_path, 1)
    write(logs / "hung.json", time=1e12, message="x" * 3000)
    starts.end(starts.FAILED, "y" * 3000, consequence=True)
    starts.begin(tmp_path, 1)
    first = starts.read_starts(tmp_path)[0]
    assert (first["ended"]["said"], first["found"]["cause"]) == ("y" * 2000, "x" * 2000)


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        (
            {
                "error-rank0.json": {"time": 1, "rank": 0, "host": "a", "message": "gone", "consequence": True},
                "error-rank5.json": {"time": 3, "rank": 5, "host": "b", "message": "later"},
                "error-rank3.json": {"time": 2, "rank": 3, "host": "b", "message": "메모리 부족"},
            },
            "rank 3 on b: 메모리 부족",
        ),
        ({"hung.json": {"time": 1e12, "message": "rank 3 hangs"}}, "rank 3 hangs"),
        (
            {
                "launch-node0.json": {"time": 9, "host": "b", "exit_code": 1, "who": "rank 0"},
                "launch-node1.json": {"time": 5, "host": "c", "exit_code": 137, "who": "rank 9"},
                "launch-node2.json": {"time": 7, "host": "d", "exit_code": 1, "who": "rank 17"},
            },
            "rank 9 on c was killed by SIGKILL (out of memory?)",
        ),
        ({"launch-node0.json": {"exit_code": 134, "host": "c", "who": "rank 1"}}, "rank 1 on c was killed by SIGABRT"),
        (
            {"launch-node0.json": {"exit_code": 1, "host": "c", "who": "rank 1"}},
            "rank 1 on c ended with exit code 1, and said nothing",
        ),
        ({"error-rank2.json": "no mapping", "launch-node0.json": {"exit_code": 0}}, None),
    ],
)
def test_the_next_start_adds_what_others_have_left(files, cause, tmp_path, logs):
    """The first rank was killed, or only knows that another one has gone."""
    starts.begin(tmp_path, 16)
    for name, content in files.items():
        (logs / name).write_text(json.dumps(content))
    write(logs / "decision.json", decision="requeued", slurm="preempted", ended="saved")
    starts.begin(tmp_path, 16)
    first, second = starts.read_starts(tmp_path)
    expected = {"decision": "requeued", "slurm": "preempted"} | ({"cause": cause} if cause else {})
    assert first["found"] == expected and "found" not in second and second["number"] == 2


def test_a_hang_outside_of_a_job_is_kept_for_the_next_start(tmp_path, monkeypatch):
    monkeypatch.delenv("PACKHAUL_LOG_DIR", raising=False)
    places = Places.of(None, tmp_path, 2)
    starts.begin(tmp_path, 2)
    write(places.hung, time=time.time() + 1, message="rank 1 hangs")
    places.keep_earlier()  # as the watch of the next start does it
    starts.begin(tmp_path, 2)
    assert starts.read_starts(tmp_path)[0]["found"]["cause"] == "rank 1 hangs"
    assert not places.hung.exists() and not (tmp_path / EARLIER_HUNG).exists()
    starts.end(starts.COMPLETE)


def test_half_a_file_is_named_and_the_next_start_has_a_number_of_its_own(tmp_path, logs):
    starts.begin(tmp_path, 1)
    (tmp_path / "starts/0002.json").write_text('{"began": 17')
    (tmp_path / "starts/.0002.json.tmp").write_text("{")
    write(tmp_path / EARLIER_HUNG, time=1e12, message="rank 1 hangs")
    starts.begin(tmp_path, 1)
    assert (tmp_path / "starts/0002.json").read_text() == '{"began": 17'
    assert [(one["number"], "problem" in one) for one in starts.read_starts(tmp_path)] == [
        (1, False),
        (2, True),
        (3, False),
    ]


def test_last_words_are_the_end_of_this_start_and_of_no_other(tmp_path, logs):
    last_words.write_down("refused before it began", 2)
    assert not (tmp_path / "starts").exists()
    starts.begin(tmp_path, 2)
    last_words.write_down("another process has ended", 1, consequence=True)
    ended = starts.read_starts(tmp_path)[0]["ended"]
    assert (ended["how"], ended["consequence"]) == ("failed", True)
    starts.begin(tmp_path, 2)
    last_words.write_down("learning_rate: too large", 2)
    assert starts.read_starts(tmp_path)[1]["ended"]["how"] == "refused"
