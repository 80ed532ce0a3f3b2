"""Which files a source names: globs, lists, refusals, and what identifies them."""

from __future__ import annotations

import json
import os

import pytest

from data_prep.sources.input_files import source_files
from data_prep.sources.slices import slice_source, source_identity
from tests.support.reading import HARD_ROWS, read_all, source_of, values, write


def test_globs_lists_and_home_are_expanded_sorted_and_each_file_comes_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "x[1].jsonl"):
        write(tmp_path / name, "{}")
    a, b, c, x = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl", "x[1].jsonl"))
    assert source_files(source_of(tmp_path / "[ab].jsonl")) == [a, b]
    assert source_files(source_of([str(b), "~/a.jsonl", str(tmp_path / "?.jsonl")])) == [a, b]
    assert source_files(source_of(tmp_path / "**" / "c.jsonl")) == [c]
    many = [write(tmp_path / f"n{number:02}.json", "{}") for number in range(30)]
    assert source_files(source_of([str(path) for path in reversed(many)])) == many
    assert source_files(source_of(x)) == [x]
    (tmp_path / "sub-x").mkdir()
    write(tmp_path / "sub-x/c.jsonl", "{}")
    assert source_files(source_of(tmp_path / "sub*" / "c.jsonl")) == [c, tmp_path / "sub-x/c.jsonl"]  # folder by folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.jsonl", "absent.jsonl: no such file"),
        ("~nobody-here/x.jsonl", "~nobody-here/x.jsonl: no such file"),
        ("absent*.jsonl", r"no file matches .*absent\*.jsonl"),
        ("folder", r"folder is a folder: name its files, such as .*folder/\*.jsonl"),
        ("empty.jsonl", "empty.jsonl is empty"),
        *[(f"x{suffix}", "files are not read; the forms read are JSON,") for suffix in (".bz2", ".XZ", ".zip")],
        ("x.parquet", "x.parquet: cannot be read: "),
        ("x.arrow", "x.arrow: cannot be read: "),
        ("blank.jsonl", "no rows in"),
        ("no_elements.json", "no rows in"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    contents = {"empty.jsonl": "", "blank.jsonl": "\ufeff \n\n", "no_elements.json": " [\n ] "}
    if not name.startswith(("absent", "folder", "~")):
        write(tmp_path / name, contents.get(name, "a,b\n1,2\n"))
    with pytest.raises(ValueError, match=rf"source 's': .*{message}"):
        slice_source(source_of(name if name.startswith("~") else tmp_path / name), 10)


def test_an_empty_array_among_other_files_adds_no_rows(tmp_path):
    write(tmp_path / "a.json", "[]")
    write(tmp_path / "b.json", json.dumps(HARD_ROWS))
    assert values(read_all(source_of(tmp_path / "*.json"))) == HARD_ROWS


def test_identity_changes_with_the_files(tmp_path):
    source = source_of(tmp_path / "*.jsonl")
    path = write(tmp_path / "x.jsonl", '{"a":1}\n')
    before = source_identity(source)
    assert json.loads(json.dumps(before)) == before == source_identity(source)
    os.utime(path, ns=(1, 1))
    touched = source_identity(source)
    write(tmp_path / "y.jsonl", '{"a":1}\n')
    assert before != touched != source_identity(source) != before
