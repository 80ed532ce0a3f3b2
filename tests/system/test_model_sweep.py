"""docs/models.md is what the sweep says, shown for a dozen types of all kinds."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT

TYPES = ["llama", "gpt_oss", "gemma3_text", "gemma4_text", "qwen3_5_text", "lfm2", "mamba2", "granitemoehybrid"]
TYPES += ["recurrent_gemma", "deepseek_v3", "bert", "llama4_text", "bloom"]


@pytest.fixture(scope="module")
def rows(worlds, tmp_path_factory) -> list[str]:
    said = worlds.run_alone("tests.benchmarks.model_sweep", TYPES, tmp_path_factory.mktemp("sweep") / "log")
    return [line for line in said.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("number", range(len(TYPES)), ids=TYPES)
def test_the_page_is_up_to_date(number, rows):
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    assert without_numbers(rows[number]) in [without_numbers(line) for line in page]


def without_numbers(row: str) -> str:
    """Rounding differs from one CPU to another, and so does how far a refused model is off."""
    return row.partition("they differ")[0].strip()
