"""Flags that say which turns and rows are trained, in the words of many tools; what cannot be obeyed costs the row."""

from __future__ import annotations

import pytest

from data_prep.sources.raw_rows import RawRow
from data_prep.sources.row_forms import RowReader
from tests.support.conversions import ANSWER, GOOD, USER, convert, reason_and_detail, source_of

OFF = [False, 0, 0.0, "0", "false"]


def flag_of(flags: dict, **options) -> bool | None:
    """How the answer is flagged."""
    return convert("messages", {"messages": [USER, ANSWER | flags]}, **options).messages[1].train


@pytest.mark.parametrize(
    "key",
    [
        *("train", "weight", "loss_weight", "training", "trainable", "loss", "loss_scale", "loss_mask"),
        *("step_loss_mask", "is_trained", "learn"),
    ],
)
def test_flags_that_ask_for_training(key):
    assert [flag_of({key: value}) for value in OFF] == [False for _ in OFF]
    assert [flag_of({key: value}) for value in (True, 1, 1.0, "1", "true")] == [True for _ in range(5)]
    assert [flag_of({key: value}) for value in (None, "", float("nan"))] == [None, None, None]


@pytest.mark.parametrize("key", ["masked", "mask", "ignore_loss", "no_loss", "no_train", "skip_loss"])
def test_flags_that_ask_against_training(key):
    assert [flag_of({key: True}), flag_of({key: 0}), flag_of({key: None})] == [False, True, None]


def test_a_flag_of_another_name():
    assert flag_of({"use_it": 0}, message_keys={"train": "use_it"}) is False
    assert flag_of({"use_it": 0, "weight": 0}, message_keys={"train": "use_it"}) is False
    assert flag_of({"use_it": 0}) is None  # nothing says that it is a flag: it is named


@pytest.mark.parametrize(
    ("flags", "reason", "said"),
    [
        ({"weight": 0.5}, "fractional_weight", "message 1: weight: expected 0 or 1"),
        ({"loss_scale": [0.5]}, "fractional_weight", "expected 0 or 1"),
        ({"loss": "no"}, "fractional_weight", "found 'no'"),
        ({"train": True, "weight": 0}, "flags_disagree", "['train', 'weight']"),
        ({"train": True, "masked": True}, "flags_disagree", "['masked', 'train']"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": True}]}, "partial_training", "train_detail"),
        (
            {"turn_loss": 0},
            "unread_key",
            "`message_keys: {train: turn_loss}`, or pass it over with `ignore: [turn_loss]`",
        ),
        ({"is_supervised": False}, "unread_key", "looks like a flag"),
        (
            {"content": [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b"}]},
            "partial_",
            "flag",
        ),
    ],
)
def test_flags_that_cannot_be_obeyed_cost_the_row(flags, reason, said):
    found = reason_and_detail("messages", {"messages": [USER, ANSWER | flags]})
    assert found[0].startswith(reason) and said in found[1]
    assert flag_of({key: None for key in flags if key != "content"}) is None


def test_spans_and_parts_that_agree_flag_the_turn():
    spans = [{"begin_offset": 0, "end_offset": 2, "train": False}, {"begin_offset": 3, "end_offset": 4, "train": False}]
    assert flag_of({"training_detail": spans}) is False
    parts = [{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b", "weight": 0}]
    assert flag_of({"content": parts}) is False


def test_a_flag_for_training_a_question_is_named():
    reader = RowReader(source_of("messages"))
    reader.conversation(RawRow(0, "x:1", {"messages": [USER | {"train": True}, ANSWER | {"train": True}]}))
    assert list(reader.unread) == ["messages[].train of user turns, which are never trained"]


def test_what_the_recipe_ignores_is_no_flag():
    assert flag_of({"weight": 0.3, "turn_loss": 0}, ignore=["weight", "turn_loss"]) is None


@pytest.mark.parametrize("column", ["weight", "sample_weight", "loss_scale", "train", "Weight", "loss_mask"])
def test_rows_that_are_not_to_be_trained_are_dropped(column):
    for value in OFF:
        assert reason_and_detail("alpaca", GOOD["alpaca"] | {column: value})[0] == "not_trained"
    for value in (1, True, "1.0", None, "", float("nan")):
        assert convert("alpaca", GOOD["alpaca"] | {column: value})
    reason, detail = reason_and_detail("alpaca", GOOD["alpaca"] | {column: 0.5})
    assert reason == "fractional_weight" and "name it in `ignore`" in detail
    assert convert("alpaca", GOOD["alpaca"] | {column: 0.5}, ignore=[column])


def test_a_row_may_be_masked_by_its_column():
    assert reason_and_detail("alpaca", GOOD["alpaca"] | {"masked": True})[0] == "not_trained"
    assert convert("alpaca", GOOD["alpaca"] | {"masked": False})
