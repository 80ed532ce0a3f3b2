"""A run killed twelve times at random moments ends as its uninterrupted twin (`tests/benchmarks/chaos.py`)."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT
from tests.support.training import environment


def chaos(folder, *options):
    """The figures that it prints last; it must say itself that all is well."""
    command = [sys.executable, "-m", "tests.benchmarks.chaos", *options, "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_killed_twelve_times_in_one_job_ends_as_its_twin(tmp_path):
    result = chaos(tmp_path, "--kills", "12", "--seed", "1", "--in-job")
    log = (tmp_path / "job.log").read_text()
    assert log.count("training again in this allocation") == 12 and "training is complete" in log
    assert result["kills"] == 12 and result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True


def test_a_run_that_reached_its_end_before_its_kills_has_lost_nothing(tmp_path):
    """Killed once it has a checkpoint; the second kill waits for more of them than are made (by this seed)."""
    result = chaos(tmp_path, "--kills", "2", "--steps", "4", "--seed", "120")
    assert result["kills"] == result["in_delete"] == 1
    assert result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True
