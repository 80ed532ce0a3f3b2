"""data_prep.tokenization.tokenizer: which tokenizers are refused, and what is imported for them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from data_prep import prepare
from data_prep.tokenization.tokenizer import load_tokenizer
from packhaul import command
from tests.conftest import ROOT


@pytest.mark.parametrize("value", [True, False])
def test_one_that_takes_control_tokens_for_text_is_refused(value, tiny_tokenizer, tmp_path):
    folder = shutil.copytree(tiny_tokenizer.name_or_path, tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "split_special_tokens": value}))
    if value:
        with pytest.raises(ValueError, match=r"says split_special_tokens: true, .*: remove it there, in a copy"):
            load_tokenizer(str(folder))
    else:
        assert load_tokenizer(str(folder))("<|im_end|>")["input_ids"] == [tiny_tokenizer.eos_token_id]


def test_a_tokenizer_is_loaded_without_torch_which_others_find_afterwards(tiny_tokenizer):
    """In a process that has asked for it, without a word."""
    code = """
import importlib.util, sys
from data_prep.tokenization import tokenizer
tokenizer.leave_out_torch()
loaded = tokenizer.load_tokenizer(sys.argv[1])
assert loaded("<|im_end|>")["input_ids"] == [loaded.eos_token_id]
assert "torch" not in sys.modules and importlib.util.find_spec("torch")
"""
    command = [sys.executable, "-c", code, tiny_tokenizer.name_or_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("own_process", "source", "filters", "asked"),
    [
        (True, {}, {}, 1),
        (False, {}, {}, 0),
        (True, {"transform": "json:loads"}, {}, 0),
        (True, {"filters": {"function": "json:dumps"}}, {}, 0),
        (True, {}, {"function": "json:dumps"}, 0),
        (True, {}, {"min_answer_characters": 1}, 1),
    ],
)
def test_torch_is_left_out_where_no_function_of_the_user_may_want_it(
    own_process, source, filters, asked, monkeypatch, tmp_path
):
    calls = []
    monkeypatch.setattr(prepare, "leave_out_torch", lambda: calls.append(1))
    monkeypatch.setattr(prepare, "prepare", lambda *_: None)
    monkeypatch.setattr(sys, "argv", sys.argv)  # which the command changes
    recipe = {"tokenizer": "t", "sources": [{"name": "a", "path": "a.jsonl", **source}], "filters": filters or None}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ["--recipe", str(tmp_path / "recipe.yaml"), "--output", "shards", "--num-workers", "1"]
    assert (command.main(["prepare", *words]) if own_process else prepare.main(words)) == 0
    assert len(calls) == asked
