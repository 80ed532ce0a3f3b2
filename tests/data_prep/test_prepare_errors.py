"""The reason reaches the person: why rows are dropped, which file an error is about, who is at work, what differs."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from data_prep.recipe import load_recipe
from data_prep.shards import MANIFEST
from data_prep.stages.job import open_job
from data_prep.stages.output_lock import hold
from tests.support.preparation import edit_recipe, run


def qa_alone(recipe_file, tmp_path, lines: list[str]):
    (tmp_path / "qa.jsonl").write_text("\n".join(lines) + "\n")
    return edit_recipe(recipe_file, sources=yaml.safe_load(recipe_file.read_text())["sources"][1:])


def test_where_no_row_is_usable_the_first_of_each_reason_is_said(recipe_file, tmp_path, capsys):
    lines = (
        [json.dumps({"question": "Who?", "answer": " "})] * 30
        + ["{broken"]
        + [json.dumps({"question": "Who?", "answer": {"a": 1}})] * 2
    )
    assert run(qa_alone(recipe_file, tmp_path, lines), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"  empty_output: {tmp_path}/qa.jsonl:1: column 'answer' is empty or blank\n" in error
    assert f"  not_json: {tmp_path}/qa.jsonl:31: " in error and f"  not_text: {tmp_path}/qa.jsonl:32: " in error


@pytest.mark.parametrize(("broken", "is_said"), [(10, False), (11, True)])
def test_where_more_than_a_tenth_is_dropped_too(broken, is_said, recipe_file, tmp_path, capsys):
    lines = [json.dumps({"question": f"{i}?", "answer": f"{i}."}) for i in range(118 - broken)]
    lines[50:50] = ["{broken"] * broken
    lines += [lines[0]] * 2
    assert run(qa_alone(recipe_file, tmp_path, lines), tmp_path / "out") == 0
    shown = capsys.readouterr().out
    notes = json.loads((tmp_path / "out" / MANIFEST).read_text())["notes"]
    expected = [
        f"source qa: {broken + 2} of 120 rows are dropped. The first of each reason:",
        f"  duplicate: {tmp_path}/qa.jsonl, row 118 of the source: repeats row 0 of qa",
        f"  not_json: {tmp_path}/qa.jsonl:51: ",
    ]
    said = [line for line in expected if line in shown and any(note.startswith(line) for note in notes)]
    assert said == (expected if is_said else [])


@pytest.mark.parametrize("name", ["alpaca-00001.npz", "train-places.npy", MANIFEST])
def test_a_full_disk_names_the_file_and_leaves_no_half_one(name, recipe_file, tmp_path, monkeypatch, capsys):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if f".{name}." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    assert run(recipe_file, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.search(rf"No space left on device: '{tmp_path}/out/.*{name}'", error), error
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_an_error_of_a_worker_names_the_file(recipe_file, tmp_path, capsys):
    """A folder that stands where a part's file belongs."""
    folders = {part.folder.name for part in open_job(load_recipe(recipe_file), tmp_path / "look").parts}
    for name in folders:
        (tmp_path / "out/.work" / name / "alpaca-00001.arrow" / "x").mkdir(parents=True)
    assert run(recipe_file, tmp_path / "out", 2) == 2
    assert "alpaca-00001.arrow'" in capsys.readouterr().err


def test_input_that_cannot_be_read_is_named(recipe_file, tmp_path, monkeypatch, capsys):
    def spans(*_: object, **__: object):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
        yield

    monkeypatch.setattr("data_prep.sources.slices.spans", spans)
    assert run(recipe_file, tmp_path / "out") == 2
    assert f"source 'alpaca': {tmp_path}/alpaca.json: [Errno 5] Input/output error" in capsys.readouterr().err


def test_a_second_preparation_is_refused_until_the_first_ends(recipe_file, tmp_path, capsys):
    with hold(tmp_path / "out/.work", "all", (0, 1)):
        assert run(recipe_file, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert f"{tmp_path}/out is being prepared by process {os.getpid()} on" in error and "Traceback" not in error
    assert run(recipe_file, tmp_path / "out") == 0
    with hold(tmp_path / "elsewhere", "all", (0, 1)):
        assert run(recipe_file, tmp_path / "out") == 0  # complete: nothing is written


def test_what_differs_from_a_complete_one_is_said(recipe_file, tmp_path, capsys):
    assert run(recipe_file, tmp_path / "out") == 0
    assert run(edit_recipe(recipe_file, seed=1, group_by="conversation"), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "was made from another recipe\n" in error
    assert "recipe: seed: 42, now 1" in error and "recipe: group_by: 'question', now 'conversation'" in error
    edit_recipe(recipe_file, seed=42, group_by="question")
    with (tmp_path / "qa.jsonl").open("a") as file:
        file.write("{}\n")
    assert run(recipe_file, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "was made from other input files\n" in error and f"inputs: qa: {tmp_path}/qa.jsonl: size: " in error
