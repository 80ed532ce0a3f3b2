"""A run killed twelve times at random moments ends as its uninterrupted twin (`tests/benchmarks/chaos.py`)."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT
from tests.training import environment


def test_a_run_killed_twelve_times_ends_as_its_twin(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.chaos", "--kills", "12", "--seed", "1"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == 12 and result["unreadable"] == 0 and result["lost_steps"] == 0 and result["equal"] is True
