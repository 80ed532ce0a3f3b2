"""Torch's flight recorder: its files are read without running what is in them, and the operation is named."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
from argparse import Namespace

import pytest

from tests.conftest import ROOT
from tests.support.training import environment
from train.run import flight_records

# Two ranks do some operations together, then rank 0 alone begins one more.
RECORDED = """
import os, sys, time
import torch.distributed as dist
import torch
from pathlib import Path
from train.run import flight_records

dist.init_process_group("gloo", init_method="file://" + sys.argv[1] + "/store", rank=int(sys.argv[2]), world_size=2)
ones = torch.ones(4)
dist.all_reduce(ones)
dist.broadcast(ones, 0)
pair = dist.new_group([0, 1])
dist.all_reduce(ones, group=pair)
dist.barrier()
if dist.get_rank() == 0:
    work = dist.all_reduce(ones, async_op=True)
time.sleep(1)  # until it is noted that the others are done
flight_records.dump(Path(sys.argv[1]), dist.get_rank())
time.sleep(2)
os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of both ranks, as the installed torch writes them."""
    folder = tmp_path_factory.mktemp("records")
    commands = [[sys.executable, "-c", RECORDED, str(folder), str(rank)] for rank in range(2)]
    running = [subprocess.Popen(command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT))) for command in commands]
    assert [process.wait(300) for process in running] == [0, 0]
    return folder


def test_the_operation_that_a_rank_misses(folder):
    said = "the ranks wait in all_reduce, number 4 of all ranks: called by rank(s) 0; missed by rank(s) 1"
    assert flight_records.describe(folder, 2) == said


def test_ranks_without_records_are_named(folder):
    assert flight_records.describe(folder, 4).endswith("missed by rank(s) 1; no records of rank(s) 2, 3")


def test_torchs_analyzer_finds_the_same(folder):
    """It expects the ranks of each group, which NCCL's records have and those of gloo lack."""
    from torch.distributed.flight_recorder.components.builder import build_db

    logging.getLogger("Flight Recorder").setLevel(logging.CRITICAL)
    groups = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    groups["1"] = {"name": "1", "desc": "undefined", "ranks": "[0, 1]"}
    records = {rank: flight_records.read(folder / f"flight_recorder_rank_{rank}") for rank in range(2)}
    details = {f"{rank}": {**record, "rank": rank, "pg_config": groups} for rank, record in records.items()}
    options = Namespace(verbose=False, just_print_entries=False, allow_incomplete_ranks=False, mismatch_cap=10)
    database = build_db(details, options, records[0]["version"])
    (theirs,) = [one for one in database.collectives if one.missing_ranks]
    with_groups = {rank: {**record, "pg_config": groups} for rank, record in records.items()}
    (ours,) = [one for one in flight_records.open_operations(with_groups, 2) if one.missed]
    assert theirs.collective_name == f"gloo:{ours.name}" and theirs.collective_seq_id == ours.number
    assert theirs.missing_ranks == set(ours.missed) == {1}


def entry(number: int, state: str) -> dict:
    values = {"process_group": ("0", "default_pg"), "profiling_name": "nccl:all_reduce", "time_created_ns": number}
    return {**values, "collective_seq_id": number, "is_p2p": False, "state": state, "retired": state == "completed"}


def test_a_device_that_has_not_begun_what_others_have():
    config = {"0": {"ranks": "[0, 1]"}}
    states = {0: "started", 1: "scheduled"}
    records = {
        rank: {"pg_config": config, "entries": [entry(1, "completed"), entry(2, state)]}
        for rank, state in states.items()
    }
    (found,) = flight_records.open_operations(records, 2)
    assert (found.number, found.begun, found.missed, found.queued) == (2, [0, 1], [], [1])


def test_ranks_without_records_may_be_of_a_group_that_names_nobody():
    """As the groups that DeepSpeed makes of all ranks, with gloo."""
    open_one = {**entry(3, "scheduled"), "process_group": ("1", "undefined")}
    (found,) = flight_records.open_operations({0: {"pg_config": {}, "entries": [open_one]}}, 2)
    assert (found.group, found.begun, found.missed, found.unknown) == ("1", [0], [], [1])


def test_an_operation_that_is_done_and_not_noted_is_not_taken_for_the_one():
    config = {"0": {"ranks": "[0, 1]"}}
    entries = {0: [entry(1, "scheduled"), entry(2, "scheduled")], 1: [entry(1, "scheduled")]}
    (found,) = flight_records.open_operations({r: {"pg_config": config, "entries": e} for r, e in entries.items()}, 2)
    assert (found.number, found.begun, found.missed) == (2, [0], [1])


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"entries": [Harmful()]}), b"", b"\x80", b"no pickle at all", pickle.dumps(["entries"])],
    ids=["harmful", "empty", "cut", "text", "other"],
)
def test_what_is_no_record_is_not_read(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(content)
    assert flight_records.read(tmp_path / "file") is None
    assert not (tmp_path / "harmed").exists()


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    with contextlib.suppress(KeyError):
        monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE")
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "mine")
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    flight_records.set_up(tmp_path)
    assert "TORCH_FR_DUMP_TEMP_FILE" not in os.environ and os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
    monkeypatch.delenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    flight_records.set_up(tmp_path)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "flight_recorder_rank_")
