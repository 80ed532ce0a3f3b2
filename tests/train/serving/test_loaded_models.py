"""Exports, runs, checkpoints and adapters that answer; what is no model is refused before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.taught_model import ask
from train.checkpoint.folders import publish
from train.serving.loaded_models import check_folder, check_sampling, load


def test_what_is_not_an_exported_model_is_refused_with_a_hint(tmp_path):
    def refused(path: str | Path) -> str:
        with pytest.raises(ValueError) as error:
            check_folder(str(path))
        return str(error.value)

    assert "found no such folder" in refused(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "found a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty")
    for sign in ("trainer_state.json", "complete.json", "run.json", "checkpoint-7/config.json"):
        folder = tmp_path / sign.replace("/", "_")
        (folder / sign).parent.mkdir(parents=True)
        (folder / sign).touch()
        (folder / "config.json").touch()
        assert f"packhaul export --checkpoint {folder} --output DIR" in refused(folder)


def test_an_unknown_hub_id_is_one_clear_error():
    check_folder("someone/something")  # may be on the hub
    with pytest.raises(ValueError, match=r"someone/something: no model that can be loaded, in a folder or on the hub"):
        load("someone/something")


def test_a_run_and_a_checkpoint_are_asked_as_they_are(taught, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(taught.parent / "run", run / "checkpoint-150")
    (run / "run.json").write_text("{}")
    for path in (run, run / "checkpoint-150"):
        ask(path, "--prompt", "Say hello.")
        captured = capsys.readouterr()
        assert captured.out == "Hello, my friend.\n"
        assert "checkpoint-150 (step 150), as it was trained and not exported" in captured.err
    (run / "checkpoint-150" / "model.safetensors").unlink()
    publish(run / "checkpoint-150", step=150, world_size=1, extra={})
    with pytest.raises(SystemExit, match=r"weights in parts, one for each process: run\n  packhaul export"):
        ask(run, "--prompt", "x")


def test_other_dtypes_and_four_bits(taught, tmp_path, capsys):
    for options in (["--dtype", "bfloat16"], ["--load_in_4bit", "--dtype", "float32"]):
        ask(taught, "--prompt", "Say hello.", "--output", f"{tmp_path}/o.jsonl", *options)
        assert capsys.readouterr().out == "Hello, my friend.\n"
        assert json.loads((tmp_path / "o.jsonl").read_text())["options"]["dtype"] == options[-1]


def test_four_bits_without_bitsandbytes_are_refused_before_a_model_loads(taught, monkeypatch):
    from train.serving import loaded_models

    monkeypatch.setattr(loaded_models, "find_spec", lambda name: None)
    monkeypatch.setattr(loaded_models, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match="--load_in_4bit needs bitsandbytes: pip install bitsandbytes"):
        ask(taught, "--prompt", "x", "--load_in_4bit")


def test_idle_sampling_options_are_refused_before_a_model_loads(taught, monkeypatch, tmp_path):
    from train.serving import loaded_models

    monkeypatch.setattr(loaded_models, "load", lambda *_: pytest.fail("a model was loaded"))
    for path in (taught, taught.parent / "run"):
        with pytest.raises(SystemExit, match=r"--top_p does nothing: .* does not sample by default; add --do_sample"):
            ask(path, "--prompt", "x", "--top_p", "0.5")
        check_sampling(str(path), {"top_p": 0.5, "do_sample": True})
    (tmp_path / "adapter_config.json").write_text("{}")
    check_sampling(str(tmp_path), {"top_p": 0.5})  # whether its base model samples is known once that is loaded
