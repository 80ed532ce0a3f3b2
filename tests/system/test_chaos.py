"""A run killed twelve times at random moments ends as its uninterrupted twin (`tests/benchmarks/chaos.py`)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.training import environment

IN_JOB = ("--kills", "12", "--seed", "1", "--in-job")
ENDED_EARLY = ("--kills", "2", "--steps", "4", "--seed", "120")
BOTH = (
    "import sys; from tests.benchmarks import chaos; sys.exit(max(chaos.main(words.split()) for words in sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def results(folder):
    """The figures of both runs, printed last; it must say itself that all is well. One process: it imports once."""
    words = [" ".join([*of, "--folder", str(folder / name)]) for name, of in (("job", IN_JOB), ("early", ENDED_EARLY))]
    command = [sys.executable, "-c", BOTH, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_run_killed_twelve_times_in_one_job_ends_as_its_twin(folder, results):
    result, log = results[0], (folder / "job" / "job.log").read_text()
    assert log.count("training again in this allocation") == 12 and "training is complete" in log
    assert result["kills"] == 12 and result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True


def test_a_run_that_reached_its_end_before_its_kills_has_lost_nothing(results):
    """Killed once it has a checkpoint; the second kill waits for more of them than are made (by this seed)."""
    result = results[1]
    assert result["kills"] == result["in_delete"] == 1
    assert result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True
