"""The Python code in docs/serving.md runs over an export of ours, as it stands there."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.support.export_runs import add_checkpoint, run_export
from tests.support.in_process import as_a_fresh_process
from tests.support.markdown import read

EXAMPLES = [block.text for block in read(ROOT / "docs" / "serving.md")[1] if block.language == "python"]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("example", EXAMPLES, ids=["model", "pipeline", "langchain", "chain"])
def test_an_example_answers(example, tiny_run, tiny_model_dir, tmp_path, monkeypatch, capsys):
    if "langchain" in example:
        pytest.importorskip("langchain_huggingface", reason="optional: needs the extra langchain")
    add_checkpoint(tiny_run, 0, tiny_model_dir("llama"))
    run_export(tiny_run, tmp_path / "exports" / "mine")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with as_a_fresh_process():
        exec(compile(example, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")  # it printed an answer
