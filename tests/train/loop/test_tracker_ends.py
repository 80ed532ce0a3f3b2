"""Trackers other than W&B end after the model is saved, and what they raise ends nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from train.loop import tracker_ends
from train.run import ending, log


class Tracker:
    """Stands in for a callback of transformers.integrations."""

    def __init__(self, calls: list[object], error: Exception | None = None):
        self.calls, self.error = calls, error

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.calls.append((state.global_step, model))
        if self.error:
            raise self.error


class Own(Tracker):
    """A callback of ours."""


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(Tracker, "__module__", "transformers.integrations.integration_utils")
    monkeypatch.setattr(Own, "__module__", "train.loop.trainer")
    return []


def at_the_end(*callbacks):
    tracker_ends.put_off(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=callbacks)))
    state = SimpleNamespace(global_step=7)
    for callback in callbacks:
        callback.on_train_end(None, state, None, model="m")
    state.global_step = 8


def test_trackers_wait_and_our_own_callbacks_do_not(calls):
    at_the_end(Tracker(calls), Own(calls))
    assert len(calls) == 1
    tracker_ends.end()
    assert calls == [(7, "m"), (7, "m")]
    tracker_ends.end()
    assert len(calls) == 2 and tracker_ends._describe_hang not in ending.by_force


def test_a_tracker_that_fails_is_named_and_the_next_one_still_ends(calls, capsys):
    log.set_up()
    at_the_end(Tracker(calls, OSError("server gone")), Tracker(calls))
    tracker_ends.end()
    assert len(calls) == 2
    assert "Tracker failed at the end of training: OSError: server gone" in capsys.readouterr().err


def test_a_tracker_that_hangs_is_named_by_force(calls):
    at_the_end(Tracker(calls))
    assert tracker_ends._describe_hang() == "Tracker has not ended: its last values may not be uploaded"
    tracker_ends.end()
    assert tracker_ends._describe_hang() is None
