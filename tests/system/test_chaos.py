"""A run killed twelve times at random moments ends as its uninterrupted twin (`tests/benchmarks/chaos.py`)."""

from __future__ import annotations

import json


def chaos(worlds, folder, *options):
    """The figures that it prints last; it must say itself that all is well."""
    said = worlds.run_alone("tests.benchmarks.chaos", [*options, "--folder", folder], folder / "log")
    return json.loads([line for line in said.splitlines() if line.startswith("{")][-1])


def test_a_run_killed_twelve_times_in_one_job_ends_as_its_twin(worlds, tmp_path):
    result = chaos(worlds, tmp_path, "--kills", "12", "--seed", "1", "--in-job")
    log = (tmp_path / "job.log").read_text()
    assert log.count("training again in this allocation") == 12 and "training is complete" in log
    assert result["kills"] == 12 and result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True


def test_a_run_that_reached_its_end_before_its_kills_has_lost_nothing(worlds, tmp_path):
    """Killed once it has a checkpoint; the second kill waits for more of them than are made (by this seed)."""
    result = chaos(worlds, tmp_path, "--kills", "2", "--steps", "4", "--seed", "120")
    assert result["kills"] == result["in_delete"] == 1
    assert result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True
