"""Hub data sets, through `datasets`; a local folder stands in for the hub."""

from __future__ import annotations

import json

import pytest

from data_prep.recipe import Source
from data_prep.sources import hub_data_sets
from data_prep.sources.slices import slice_source, source_identity
from tests.support.reading import read_all, values, write


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub_data_sets._load.cache_clear()
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder / "train.jsonl", "".join(json.dumps({"a": str(i), "b": None}) + "\n" for i in range(7)))
    yield folder
    hub_data_sets._load.cache_clear()


def test_a_hub_data_set_is_sliced_and_read_by_rows(hub_folder):
    source = Source(name="s", dataset=str(hub_folder), form="alpaca")
    slices = slice_source(source, 3)
    assert [(p.path, p.start, p.end, p.first_row, p.num_rows) for p in slices] == [
        (None, 0, 3, 0, 3),
        (None, 3, 6, 3, 3),
        (None, 6, 7, 6, 1),
    ]
    rows = read_all(source, 3)
    assert values(rows) == [{"a": str(i), "b": None} for i in range(7)]
    assert rows[4].where == f"{hub_folder}[4]"
    assert [row.number for row in rows] == list(range(7))
    assert len(read_all(Source(name="s", dataset=str(hub_folder), form="alpaca", first=4), 3)) == 4


def test_identity_of_a_hub_data_set_changes_with_its_rows(hub_folder):
    source = Source(name="s", dataset=str(hub_folder), form="alpaca")
    [before] = source_identity(source)
    assert json.loads(json.dumps(before)) == before
    assert before.keys() == {"dataset", "subset", "split", "revision", "fingerprint"}
    write(hub_folder / "train.jsonl", '{"a": "other"}\n')
    hub_data_sets._load.cache_clear()  # as a new process would find it
    assert source_identity(source) != [before]


def test_a_missing_split_and_a_missing_folder_say_what_to_check(hub_folder):
    with pytest.raises(ValueError, match=r"(?s)source 's': cannot load data set .*'split': 'tset'.*Check `dataset`"):
        slice_source(Source(name="s", dataset=str(hub_folder), split="tset", form="alpaca"), 3)
    with pytest.raises(ValueError, match=r"(?s)cannot load data set .*absent.*Check `dataset`"):
        slice_source(Source(name="s", dataset=str(hub_folder / "absent"), form="alpaca"), 3)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (FileNotFoundError("Dataset 'o/d' is a gated dataset on the Hub."), "`hf auth login` or put HF_TOKEN"),
        (ConnectionError("Couldn't reach 'o/d' on the Hub (OfflineModeIsEnabled)"), "HF_HUB_OFFLINE is set"),
        (ConnectionError("Couldn't reach 'o/d' on the Hub"), "check the network"),
        (FileNotFoundError("Dataset 'o/d' doesn't exist on the Hub or cannot be accessed."), "Check `dataset`"),
    ],
)
def test_hub_errors_say_what_to_do(hub_folder, monkeypatch, error, remedy):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match=remedy):
        slice_source(Source(name="s", dataset="o/d", form="alpaca"), 3)
