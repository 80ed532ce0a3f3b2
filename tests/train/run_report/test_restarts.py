"""Time lost to restarts, and how each start ended."""

from __future__ import annotations

import pytest

from train.run_report.restarts import duration, restarts, shortened


def start(number, began, first_step=None, **more):
    return {"number": number, "began": began, "first_step": first_step, "processes": 8, **more}


def ended(how, time, **more):
    return {"ended": {"how": how, "time": time, "said": "", **more}}


def test_the_time_lost_is_made_of_its_parts():
    """Killed at 1000, last heard of at 990, 110 s after a checkpoint; 60 s until the next start, 40 s of starting."""
    killed = start(1, 100, 150, from_step=0, step=57, alive=990)
    found = restarts([killed, start(2, 1050, 1090, from_step=50, state_saved=880)])
    row = found["rows"][1]
    assert (row["lost"], row["waiting"], row["starting"], row["repeating"]) == (210, 60, 40, 110)
    assert found["lost"] == 210 and found["rows"][0]["again"] == 7 and "lost" not in found["rows"][0]


def test_a_start_came_at_least_to_where_the_next_one_goes_on_from():
    """It was killed soon after a checkpoint, before it noted its step again."""
    rows = restarts([start(1, 0, 10, from_step=0, step=1, alive=10), start(2, 60, 70, from_step=10)])["rows"]
    assert (rows[0]["last"], rows[0]["again"]) == (10, 0)


def test_waiting_begins_with_what_was_saved_last():
    """A checkpoint was saved after the last note of the start that was killed."""
    starts = [start(1, 0, 10, step=1, alive=10), start(2, 100, 110, from_step=5, state_saved=60)]
    row = restarts(starts)["rows"][1]
    assert (row["lost"], row["waiting"], row["starting"], row["repeating"]) == (50, 40, 10, 0)


def test_nothing_is_counted_twice_where_a_start_made_no_progress():
    """Three starts from the same checkpoint: in all from its save to the last one's first step, less the steps made."""
    starts = [
        start(1, 0, 10, step=30, alive=100),
        start(2, 110, 120, from_step=20, state_saved=80, step=25, alive=130),
        start(3, 140, None, from_step=20, state_saved=80, **ended("failed", 150)),
        start(4, 160, 170, from_step=20, state_saved=80),
    ]
    assert [row.get("lost") for row in restarts(starts)["rows"]] == [None, 40, 20, 30]


@pytest.mark.parametrize("how", ["complete", "interrupted"])
def test_what_was_wanted_costs_its_start_alone(how):
    """A person stops a run, or lets it go on with more epochs a week later."""
    first = start(1, 0, 10, **ended(how, 100))
    row = restarts([first, start(2, 600_000, 600_030, state_saved=99)])["rows"][1]
    assert (row["lost"], row["starting"], row["waiting"], row["repeating"]) == (30, 30, None, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"ended": {"how": "saved", "said": "SIGUSR1"}}, "stopped by SIGUSR1: checkpoint saved"),
        (
            {"ended": {"how": "saved", "said": "SIGTERM"}, "found": {"slurm": "preempted", "decision": "requeued"}},
            "stopped by SIGTERM: checkpoint saved; SLURM preempted the job; requeued",
        ),
        ({"ended": {"how": "failed", "said": "메모리 부족.\n\nTraceback (most"}}, "failed: 메모리 부족"),
        (
            {"ended": {"how": "failed", "said": "gone", "consequence": True}, "found": {"cause": "rank 3: no memory"}},
            "rank 3: no memory",
        ),
        ({"ended": {"how": "failed", "said": "gone", "consequence": True}}, "gone"),
        ({"found": {"cause": "rank 1 hangs"}}, "rank 1 hangs"),
        ({}, "ended without a word: killed (SIGKILL, host memory), or its machine went down"),
        ({"ended": {"how": "interrupted"}}, "Ctrl-C: checkpoint saved"),
    ],
)
def test_how_a_start_ended(content, said):
    assert restarts([start(1, 0, **content), start(2, 1)])["rows"][0]["ended"] == said


def test_the_last_start_may_still_run():
    assert restarts([start(1, 0)])["rows"][0]["ended"] == "has not ended, or was killed"


def test_of_files_that_cannot_be_read_the_others_are_shown():
    found = restarts([start(1, 0, 5, alive=10), {"number": 2, "problem": "0002.json cannot be read"}, start(3, 20, 25)])
    assert [row["number"] for row in found["rows"]] == [1, 3] and found["problems"] == ["0002.json cannot be read"]
    assert restarts([]) == {"rows": [], "lost": 0, "problems": []}
    assert restarts([start(1, None), start(2, None)])["lost"] == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *[(None, "–"), (59.6, "60 s"), (99, "99 s"), (100, "2 min"), (600, "10 min"), (7980, "2 h 13 min")],
        *[(47 * 3600, "47 h 0 min"), (48 * 3600, "2.0 days")],
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_only_a_long_message_is_cut():
    assert [shortened("x" * length) for length in (400, 401)] == ["x" * 400, "x" * 400 + " …"]
