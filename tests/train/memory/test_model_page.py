"""What the page of a model says of packed rows for its type."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.model_sweep import VERDICTS, verdicts
from tests.conftest import ROOT
from train.memory.model_page import _verdict


def test_the_verdicts_are_those_of_the_page():
    assert json.loads(VERDICTS.read_text(encoding="utf-8")) == verdicts(ROOT / "docs" / "models.md")


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("llama", "documents stay apart in a small model of this type"),
        ("bert", "REFUSED, as a small model of this type was (docs/models.md): the model's own log-probabilities"),
        ("of_tomorrow", "not known for this type: the start of a run proves"),
    ],
)
def test_what_is_expected_of_a_type(model_type, expected):
    assert _verdict(model_type).startswith(expected)
