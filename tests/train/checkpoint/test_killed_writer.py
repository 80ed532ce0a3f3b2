"""train.checkpoint.folders: a process that is killed while it saves leaves a usable newest checkpoint."""

from __future__ import annotations

import random
import subprocess
import sys
import time

from tests.conftest import ROOT
from train.checkpoint.folders import MARKER, newest_complete

WRITER = """
import itertools, pathlib, sys
from train.checkpoint.folders import publish, rotate
run_dir = pathlib.Path(sys.argv[1])
for step in itertools.count(1):
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir()
    for part in range(4):
        (folder / f"part{part}").write_bytes(bytes(100_000))
    publish(folder, step=step, world_size=4, extra={})
    rotate(run_dir, keep=2, best=None)
"""


def test_a_writer_killed_at_random_moments_leaves_a_usable_newest_checkpoint(tmp_path):
    random.seed(7)
    seen = 0
    for trial in range(6):
        run_dir = tmp_path / str(trial)
        run_dir.mkdir()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(run_dir)], cwd=ROOT)
        try:
            deadline = time.monotonic() + 300
            while not list(run_dir.glob(f"*/{MARKER}")) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.2))
        finally:
            writer.kill()
            writer.wait(timeout=30)
        messages: list[str] = []
        newest = newest_complete(run_dir, messages.append)
        assert newest is not None
        assert {p.stat().st_size for p in newest.path.glob("part*")} == {100_000}
        assert len(list(newest.path.glob("part*"))) == 4
        assert all("cut off" in m for m in messages), messages  # a kill leaves cut-off saves, never damaged ones
        seen += newest.step
    assert seen > 6  # the writer got on
