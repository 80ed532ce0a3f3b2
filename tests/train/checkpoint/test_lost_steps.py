"""A run whose checkpoints are not usable never begins again by mistake, and says which steps it trains twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.checkpoint_folders import save
from tests.support.saving_runs import assert_equal, run_here
from train.checkpoint import folders
from train.checkpoint.lost_steps import check_nothing_is_lost, warn_of_steps_trained_again
from train.run import run_record


def lose_marker(run_dir: Path) -> None:
    for folder in folders.named_folders(run_dir):
        (folder / folders.MARKER).unlink()


def lose_weights(run_dir: Path) -> None:
    for file in run_dir.glob("checkpoint-*/model.safetensors"):
        file.unlink()


def cut_weights(run_dir: Path) -> None:
    for file in run_dir.glob("checkpoint-*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])


def lose_all_files(run_dir: Path) -> None:
    """As a purge by age does, which leaves folders."""
    for file in run_dir.glob("checkpoint-*/**/*"):
        if file.is_file():
            file.unlink()


def lose_folders(run_dir: Path) -> None:
    for folder in folders.named_folders(run_dir):
        shutil.rmtree(folder)


LOSSES = {
    lose_marker: "no complete.json",
    lose_weights: "model.safetensors is missing",
    cut_weights: "model.safetensors has ",
    lose_all_files: "no complete.json",
    lose_folders: "is not there, and run.json says that step 4 was saved",
}


def contents(run_dir: Path) -> dict[str, bytes]:
    """What is in the run directory, without the lock."""
    return {
        str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.is_file() and ".lock" not in p.name
    }


@pytest.fixture(scope="module")
def stopped(make_run):
    """A run of four steps with checkpoints of 2 and 4, whose final model is not counted: a killed run looks like it."""
    config, run_dir = make_run("stopped", max_steps=4)
    assert run_here(config) == 0
    (run_dir / folders.MARKER).unlink()
    return config, run_dir


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_whose_checkpoints_are_all_lost_does_not_begin(loss, resume, stopped, tmp_path, capsys):
    config, run_dir = stopped
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    loss(copy)
    before = contents(copy)
    assert run_here(config, "--output_dir", str(copy), "--resume", resume) == 2
    error = capsys.readouterr().err
    assert "but nothing to go on from" in error and "To begin at step 0 instead" in error
    assert f"- checkpoint-4: {LOSSES[loss]}" in error
    if loss is not lose_folders:
        assert f"- checkpoint-2: {LOSSES[loss]}" in error
    assert contents(copy) == before


def test_what_is_moved_away_on_purpose_is_no_hindrance(stopped, tmp_path, said):
    config, run_dir = stopped
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    lose_folders(copy)
    (copy / run_record.FILE).unlink()
    assert run_here(config, "--output_dir", str(copy)) == 0
    assert "resuming" not in said()


def test_a_first_start_killed_before_its_first_checkpoint_begins_again(stopped, tmp_path):
    """It has left run.json, and the temporary folder of a save that was cut off."""
    config, run_dir = stopped
    (tmp_path / "run").mkdir()
    record = json.loads((run_dir / run_record.FILE).read_text())
    assert record["saved_step"] == 4
    (tmp_path / "run" / run_record.FILE).write_text(json.dumps({**record, "saved_step": None}))
    (tmp_path / "run" / ".saving-2" / "all").mkdir(parents=True)
    (tmp_path / "run" / ".saving-2" / "all" / "model.safetensors").write_bytes(b"half")
    assert run_here(config, "--output_dir", str(tmp_path / "run")) == 0
    assert folders.read(tmp_path / "run").step == 4


def test_an_older_checkpoint_is_taken_with_a_warning_and_ends_as_its_twin(stopped, tmp_path, said):
    config, run_dir = stopped
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (copy / "checkpoint-4" / "model.safetensors").unlink()
    assert run_here(config, "--output_dir", str(copy)) == 0
    assert_equal(copy, run_dir)
    (line,) = (line for line in said().splitlines() if "NOT USABLE" in line)
    assert line.startswith("sft: WARNING: A NEWER STATE IS NOT USABLE: checkpoint-4: model.safetensors is missing (")
    assert line.endswith("checkpoint-2 is taken instead: steps 3 to 4 are trained again")


@pytest.fixture(scope="module")
def finished(make_run):
    """A finished run without checkpoints."""
    config, run_dir = make_run("without-checkpoints", max_steps=2, save_strategy="no")
    assert run_here(config) == 0
    return config, run_dir


@pytest.mark.parametrize("lost", ["model.safetensors", "complete.json"])
def test_a_finished_run_that_has_lost_a_file_does_not_begin_again(lost, finished, tmp_path, capsys):
    config, run_dir = finished
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (copy / lost).unlink()
    before = contents(copy)
    assert run_here(config, "--output_dir", str(copy)) == 2
    error = capsys.readouterr().err
    words = {
        "model.safetensors": "- the final model: run: model.safetensors is missing",
        "complete.json": "step 2 was saved",
    }
    assert words[lost] in error and "Nothing was changed" in error
    assert contents(copy) == before


# By folders alone.


def record(run_dir: Path, **content: object) -> None:
    (run_dir / run_record.FILE).write_text(json.dumps(content))


def test_an_empty_or_killed_run_directory_has_lost_nothing(tmp_path):
    check_nothing_is_lost(tmp_path / "absent")
    record(tmp_path, saved_step=None)
    (tmp_path / ".saving-2").mkdir()
    check_nothing_is_lost(tmp_path)


@pytest.mark.parametrize("name", ["damaged-checkpoint-4", "aside-checkpoint-4"])
def test_checkpoints_given_up_before_are_steps_that_were_done(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"- {name}: given up before"):
        check_nothing_is_lost(tmp_path)


def test_many_lost_files_are_counted(tmp_path):
    for file in (files := sorted(p for p in save(tmp_path, 4).rglob("*") if p.name != folders.MARKER and p.is_file())):
        file.unlink()
    assert len(files) == 3
    with pytest.raises(ValueError, match=r"global_step4/rank_1.pt is missing .*, model.safetensors is missing"):
        folders.read(tmp_path / "checkpoint-4")


def warning(capsys, run_dir: Path, taken: int) -> str:
    from train.run import log

    log.set_up()
    warn_of_steps_trained_again(run_dir, folders.read(run_dir / f"checkpoint-{taken}"))
    return capsys.readouterr().err


def test_a_newest_checkpoint_that_is_usable_is_no_remark(tmp_path, capsys):
    save(tmp_path, 2, complete=False)
    save(tmp_path, 4)
    record(tmp_path, saved_step=4)
    assert warning(capsys, tmp_path, 4) == ""


def test_a_folder_that_is_gone_is_known_from_run_json(tmp_path, capsys):
    save(tmp_path, 4)
    record(tmp_path, saved_step=9)
    assert "checkpoint-9: is not there" in (said := warning(capsys, tmp_path, 4)) and "steps 5 to 9 are" in said


@pytest.mark.parametrize(("taken", "words"), [(4, "steps 5 to 9 are trained again"), (9, "no step is trained again")])
def test_a_lost_final_model_is_a_newer_state(taken, words, tmp_path, capsys):
    save(tmp_path, taken)
    (tmp_path / "model.safetensors").write_bytes(b"final")
    folders.publish(tmp_path, step=9, world_size=1, extra={})
    record(tmp_path, saved_step=9)
    assert warning(capsys, tmp_path, taken) == ""
    (tmp_path / "model.safetensors").unlink()
    assert words in (said := warning(capsys, tmp_path, taken)) and "the final model: " in said


def test_a_final_model_that_the_run_went_on_after_is_no_newer_state(tmp_path, capsys):
    save(tmp_path, 12)
    (tmp_path / "model.safetensors").write_bytes(b"final")
    folders.publish(tmp_path, step=9, world_size=1, extra={})
    (tmp_path / "model.safetensors").unlink()
    assert warning(capsys, tmp_path, 12) == ""
