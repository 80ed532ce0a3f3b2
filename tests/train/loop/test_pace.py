"""The parts of a step are measured, and the slowest rank is the one that waits least."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from train.loop import pace
from train.loop.pace import PARTS, Pace, slowest_rank

SLEPT = 0.2


def test_each_part_has_its_own_time():
    measured = Pace(torch.device("cpu"))
    for part, sleeps in (("data", 1), ("forward", 2), ("backward", 3)):
        measured.begin(part)
        time.sleep(sleeps * SLEPT)
        measured.begin(part)  # under way already
    measured.end_step()
    time.sleep(SLEPT)  # is no part of a step
    measured.begin("forward")
    with measured.waiting():
        time.sleep(2 * SLEPT)
    measured.end_step()
    found = dict(zip(PARTS, measured.take(), strict=True))
    assert found == {
        "data": pytest.approx(SLEPT, abs=SLEPT / 2),
        "forward": pytest.approx(2 * SLEPT, abs=SLEPT / 2),
        "backward": pytest.approx(3 * SLEPT, abs=SLEPT / 2),
        "waiting": pytest.approx(2 * SLEPT, abs=SLEPT / 2),
    }
    assert measured.take() == [0, 0, 0, 0]


class Event:
    """Stands in for an event of a GPU: it is passed when the device has come as far."""

    recorded, passed = 0, 0  # of all events

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        Event.recorded += 1
        self.number = Event.recorded

    def query(self) -> bool:
        return self.number <= Event.passed

    def elapsed_time(self, end: Event) -> float:
        assert end.query()  # a GPU raises an error
        return 1000.0 * (end.number - self.number)

    def synchronize(self) -> None:
        raise AssertionError("the host must not wait for the device")


def test_events_are_read_once_the_device_has_passed_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: 0.0)
    measured = Pace(torch.device("cuda"))
    for part in ("data", "forward", "backward"):
        measured.begin(part)
    measured.end_step()
    assert measured.take() == [0, 0, 0, 0]
    Event.passed = 3  # the beginning of the backward pass
    assert measured.take() == [0, 1, 0, 0]
    Event.passed = 4
    assert measured.take() == [0, 0, 1, 0]
    assert measured.take() == [0, 0, 0, 0]


TABLE = torch.tensor([[0.2, 2.0, 4.0, 1.9], [0.2, 3.8, 4.0, 0.1], [0.2, 1.9, 4.0, 2.0], [0.2, 2.0, 4.0, 1.8]])


def test_the_rank_that_waits_least_and_how_much_longer_it_works():
    found = slowest_rank(TABLE, 2, ["a", "a", "b", "b"])
    assert found == {
        "slowest_rank": 1,
        "slowest_host": "a",
        "slowdown": pytest.approx(8.0 / 6.2),
        "slowest_data_seconds": pytest.approx(0.1),
        "slowest_forward_seconds": pytest.approx(1.9),
        "slowest_backward_seconds": pytest.approx(2.0),
        "slowest_waiting_seconds": pytest.approx(0.05),
    }


@pytest.mark.parametrize("table", [TABLE[:1], TABLE * torch.tensor([1, 1, 1, 0])], ids=["one process", "no waiting"])
def test_where_nobody_waits_for_another_no_rank_is_named(table):
    assert slowest_rank(table, 2, ["a"] * len(table)) == {}


def test_the_name_of_a_host_reaches_wandb(monkeypatch):
    """Its callback takes texts next to numbers."""
    from transformers import TrainerControl, TrainerState
    from transformers.integrations import WandbCallback

    logs, sent = slowest_rank(TABLE, 2, ["a", "b", "c", "d"]), []
    state = TrainerState(global_step=3, is_world_process_zero=True, is_local_process_zero=True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None, log=sent.append))
    callback = WandbCallback.__new__(WandbCallback)
    callback._wandb, callback._initialized = SimpleNamespace(log=sent.append, run=SimpleNamespace(summary={})), True
    callback.on_log(None, state, TrainerControl(), model=None, logs=dict(logs))
    assert sent == [{**{f"train/{name}": value for name, value in logs.items()}, "train/global_step": 3}]
