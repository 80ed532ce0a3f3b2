"""Evaluation files of each form are read in full, with the place of each text, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.quality.decontamination import Decontaminate
from data_prep.sources.evaluation_files import evaluation_identity, evaluation_index, evaluation_texts
from tests.support.evaluation_rows import ENGLISH, KOREAN, index_of, write


@pytest.mark.parametrize(
    ("name", "rows", "place"),
    [
        ("e.jsonl", [{"q": "x"}, {"q": ENGLISH}], "e.jsonl:2"),
        ("e.json", [{"q": "x"}, {"q": ENGLISH}], "e.json[1]"),
        ("e.txt", ["x", "", ENGLISH], "e.txt:3"),
    ],
)
def test_files_of_each_form(tmp_path, name, rows, place):
    found = index_of(write(tmp_path / name, rows)).overlap(ENGLISH)
    assert found is not None
    assert found.endswith(place)


def test_places_are_right_in_files_of_many_rows(tmp_path):
    rows = [{"q": " ".join(f"{i}{letter}" for letter in "abcdefghijklmno")} for i in range(5000)]
    found = index_of(write(tmp_path / "eval.jsonl", rows)).overlaps(
        [" ".join(f"{i}{letter}" for letter in "bcdefghijklmno") for i in range(5000)]
    )
    assert [str(f).rpartition(":")[2] for f in found] == [str(i + 1) for i in range(5000)]


def test_globs_and_one_file_without_a_list(tmp_path):
    write(tmp_path / "a.jsonl", [{"q": ENGLISH}])
    write(tmp_path / "b.json", [{"q": KOREAN}])
    options = Decontaminate(files=str(tmp_path / "*.json*"))
    assert evaluation_index(options) is evaluation_index(Decontaminate(files=[str(tmp_path / "*.json*")]))
    assert all(evaluation_index(options).overlaps([ENGLISH, KOREAN]))
    assert [Path(f["path"]).name for f in evaluation_identity(options)] == ["a.jsonl", "b.json"]


def test_files_that_cannot_be_used(tmp_path):
    for files, message in [
        ([str(tmp_path / "none.jsonl")], "decontaminate: .*no such file"),
        ([str(write(tmp_path / "bad.jsonl", [{"q": ENGLISH}]))], "decontaminate: .*bad.jsonl:2.*not_json"),
    ]:
        (tmp_path / "bad.jsonl").write_text(json.dumps({"q": ENGLISH}) + '\n{"q": "broken\n', encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            evaluation_texts(Decontaminate(files=files))
