"""Rows read without `datasets`' own formatting: what they hold, and how they travel."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, LargeList, List, Value, concatenate_datasets

from train.loop.data import number_rows, pad_to_multiple
from train.loop.row_reader import PackedRows, rows_of

LISTS = ("input_ids", "labels", "seq_lengths", "sources")


def made(count: int, kind=List, start: int = 0) -> Dataset:
    """Rows of one to seven numbers."""
    random = np.random.default_rng(start)
    rows = {name: [random.integers(-100, 999, 1 + n % 7).tolist() for n in range(count)] for name in LISTS}
    return Dataset.from_dict(rows, features=Features({name: kind(Value("int32")) for name in LISTS}))


@pytest.fixture
def shards(tmp_path) -> Dataset:
    """Two files of several record batches, with filler rows and the rows' numbers."""
    parts = []
    for number, count in enumerate((25, 12)):
        made(count, start=number).save_to_disk(tmp_path / str(number), num_shards=3)
        parts.append(Dataset.load_from_disk(str(tmp_path / str(number))))
    return number_rows(pad_to_multiple(concatenate_datasets(parts), 8, 5))


def assert_equal_rows(rows, dataset: Dataset) -> None:
    assert len(rows) == len(dataset) > 0
    for index, row in enumerate(dataset.with_format("numpy")):
        assert list(rows[index]) == list(row)
        for name, value in row.items():
            np.testing.assert_array_equal(rows[index][name], value)
            assert np.asarray(rows[index][name]).dtype == np.asarray(value).dtype


def test_rows_are_those_of_the_dataset(shards):
    assert len(shards) == 40
    assert_equal_rows(rows_of(shards), shards)
    assert [int(row["row"]) for row in rows_of(shards).__getitems__([39, 0, 25])] == [39, 0, 25]


@pytest.mark.parametrize("kind", [List, LargeList])
def test_a_part_of_a_table_begins_where_it_begins(kind):
    dataset = made(30, kind)
    assert_equal_rows(PackedRows(dataset.select(range(11, 23))), dataset.select(range(11, 23)))


def test_rows_chosen_by_an_index_are_read_by_the_dataset():
    dataset = made(10).select([7, 2, 2])
    assert rows_of(dataset) is dataset


def test_another_process_maps_the_files_again(shards, tmp_path):
    made(100_000).save_to_disk(tmp_path / "large")
    rows = PackedRows(Dataset.load_from_disk(str(tmp_path / "large")))
    content = pickle.dumps(rows)
    assert len(content) < 10_000
    assert_equal_rows(pickle.loads(pickle.dumps(PackedRows(shards))), shards)
