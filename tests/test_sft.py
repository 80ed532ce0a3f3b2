"""What train.sft refuses when it has joined its world and before it loads a model."""

from __future__ import annotations

import pytest

from tests.in_process import as_a_fresh_process
from tests.preflight_files import write_model, write_shards
from train.sft import main


@pytest.mark.parametrize(
    ("visible", "flags", "words"),
    [
        (2, [], "expected one GPU for each process, this process sees 2"),
        (1, ["--expected_world_size", "4"], "expected_world_size is 4"),
    ],
)
def test_refused(visible, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: visible))
    shards, model = write_shards(tmp_path / "shards"), write_model(tmp_path / "model")
    base = ["--data", str(shards), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run")]
    with as_a_fresh_process():
        assert main([*base, "--use_cpu", "--bf16", "false", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
