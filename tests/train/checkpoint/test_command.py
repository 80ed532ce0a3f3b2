"""`packhaul checkpoint`: what it prints, its exit codes, and that it answers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.checkpoint_folders import save, steps
from train.checkpoint.__main__ import main
from train.run import run_lock


@pytest.fixture
def run_dir(tmp_path):
    """Four checkpoints of which 10 is the best, a damaged one, one without a marker, and leftovers of kills."""
    for step in (10, 20, 30, 40):
        folder = save(tmp_path, step)
    state = {"best_model_checkpoint": f"/elsewhere/{tmp_path.name}/checkpoint-10"}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    os.truncate(save(tmp_path, 25) / "model.safetensors", 3)
    save(tmp_path, 5, complete=False)
    (tmp_path / ".saving-44").mkdir()
    (tmp_path / ".deleting-checkpoint-1").mkdir()
    return tmp_path


def test_list_shows_what_is_usable_the_newest_the_best_and_leftovers(run_dir, capsys):
    assert main(["list", str(run_dir)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines)[:6] == [f"checkpoint-{n}" for n in (5, 10, 20, 25, 30, 40)]
    assert lines["checkpoint-10"].endswith("best") and lines["checkpoint-40"].endswith("newest")
    assert "NOT USABLE" in lines["checkpoint-5"] and "the save was cut off" in lines["checkpoint-5"]
    assert "model.safetensors has 3 bytes, 1025 expected" in lines["checkpoint-25"]
    assert "2 process(es)" in lines["checkpoint-20"]
    assert {".saving-44", ".deleting-checkpoint-1"} <= set(lines)


def test_verify_reads_every_byte(run_dir, capsys):
    weights = run_dir / "checkpoint-20" / "model.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    assert main(["verify", str(run_dir)]) == 1
    output = capsys.readouterr().out
    assert "DAMAGED  checkpoint-20: model.safetensors is not what was written (xxh3_128 " in output
    assert "3 of 6 complete and unchanged" in output
    assert main(["verify", str(run_dir / "checkpoint-30")]) == 0
    assert "1 of 1 complete and unchanged" in capsys.readouterr().out


def test_prune_keeps_the_newest_and_the_best(run_dir, capsys):
    assert main(["prune", str(run_dir), "--keep", "2", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert steps(run_dir) == [5, 10, 20, 25, 30, 40]
    assert main(["prune", str(run_dir), "--keep", "2"]) == 0
    assert steps(run_dir) == [10, 25, 40]  # the damaged one is for a person to look at
    deleted = capsys.readouterr().out
    assert [line.split()[-1] for line in planned.splitlines()] == ["checkpoint-5", "checkpoint-20", "checkpoint-30"]
    assert "deleted .saving-44" in deleted and "deleted checkpoint-30" in deleted


def test_prune_refuses_a_run_in_progress_and_keep_below_one(run_dir, capsys):
    with run_lock.lock(run_dir):
        assert main(["prune", str(run_dir), "--keep", "1"]) == 2
    assert "is in use by another job" in capsys.readouterr().err
    assert main(["prune", str(run_dir), "--keep", "0"]) == 2
    assert "--keep: expected 1 or more, found 0" in capsys.readouterr().err
    assert steps(run_dir) == [5, 10, 20, 25, 30, 40]


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["list", str(tmp_path / "absent")]) == 2
    assert "absent: expected a run directory" in capsys.readouterr().err


def test_the_command_imports_nothing_heavy(run_dir):
    code = (
        "import sys; sys.argv = ['x', 'list', sys.argv[1]]; import runpy\n"
        "try: runpy.run_module('train.checkpoint', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run_dir)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
