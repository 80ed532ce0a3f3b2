"""Settings that a model is loaded with but cannot be saved with are mended or refused before training."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.support.saving_runs import run_here, single_config
from tests.support.training import make_shards
from train.model.saved_settings import make_savable

SAMPLING = {"temperature": 0.6, "top_p": 0.9}
IDLE = {"length_penalty": 2.0, "early_stopping": True}


@pytest.fixture
def load(tiny_model_dir):
    """Factory: the tiny model with these generation defaults."""

    def make(defaults: dict):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
        model.generation_config = GenerationConfig(**defaults)
        return model

    return make


@pytest.mark.parametrize(
    ("defaults", "kept", "words"),
    [
        (SAMPLING, {**SAMPLING, "do_sample": True}, "temperature, top_p without do_sample"),
        ({"do_sample": False, "top_k": 5}, {"do_sample": True, "top_k": 5}, "top_k without do_sample"),
        ({"repetition_penalty": 1.1, **IDLE}, {"repetition_penalty": 1.1}, "early_stopping, length_penalty, which do"),
        ({**SAMPLING, **IDLE, "num_beams": 2}, {**SAMPLING, **IDLE, "num_beams": 2, "do_sample": True}, "temperature"),
        ({**SAMPLING, "do_sample": True}, {**SAMPLING, "do_sample": True}, ""),
        ({"output_scores": True}, {}, "output_scores, which do nothing"),
    ],
)
def test_generation_defaults_that_cannot_be_saved_are_mended(defaults, kept, words, load, tmp_path, caplog):
    model = load(defaults)
    with caplog.at_level(logging.INFO, logger="train"):
        make_savable(model)
    assert words in caplog.text and bool(words) == bool(caplog.records)
    model.generation_config.eos_token_id = [3]  # as training changes it
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved.items() >= kept.items()
    assert not (defaults.keys() - kept.keys()) & saved.keys()


def test_what_cannot_be_saved_at_all_is_refused(load):
    model = load({})
    model.config.rope_parameters = {"rope_type": object()}
    with pytest.raises(ValueError, match=r"no checkpoint could be saved, because its settings cannot be: .*mended"):
        make_savable(model)


def test_a_run_from_such_a_model_saves_its_checkpoints(tiny_tokenizer, tiny_model_dir, tmp_path):
    base = shutil.copytree(tiny_model_dir("llama"), tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps(SAMPLING))
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"a": [1] * 4}, eval_fraction=0)
    options = {"data": str(shards), "model_name_or_path": str(base), "output_dir": str(tmp_path / "run")}
    options |= {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    assert run_here(single_config(tmp_path / "run.yaml", **options)) == 0
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        saved = json.loads((folder / "generation_config.json").read_text())
        assert (folder / "complete.json").exists() and saved.items() >= {**SAMPLING, "do_sample": True}.items()
