"""A weight that a model holds under two names is written once; what only looks so stays."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.export_runs import add_checkpoint, run_export
from train.checkpoint.folders import publish
from train.checkpoint.tied_weights import drop_copies, drop_copies_in_files, tied_names

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def tied(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir("qwen3"))


def cloned(model) -> dict[str, torch.Tensor]:
    """As DeepSpeed's states come, whose tensors no longer share their memory."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_second_name_of_a_tied_weight_goes(tied):
    states = cloned(tied)
    drop_copies(states, tied)
    assert tied.state_dict().keys() - states.keys() == {HEAD}


def test_what_differs_or_is_not_tied_stays(tied, tiny_model_dir):
    states = cloned(tied)
    states[HEAD] += 1
    drop_copies(states, tied)
    assert HEAD in states
    untied = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    states = cloned(untied)
    states[HEAD] = states[EMBEDDINGS].clone()
    drop_copies(states, untied)
    assert HEAD in states and tied_names(untied) == {}
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.clone())  # no longer one, whatever config.json says
    assert tied_names(tied) == {}


def test_files_are_rewritten_without_it_and_so_is_their_index(tied, tmp_path):
    states, names = cloned(tied), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[name != HEAD] for name in states}
    for file in names:
        save_file({n: t for n, t in states.items() if places[n] == file}, tmp_path / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert drop_copies_in_files(tmp_path, tied) == [HEAD]
    assert not (tmp_path / names[0]).exists()  # nothing else was in it
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert HEAD not in index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for n, t in states.items() if n != HEAD)
    assert drop_copies_in_files(tmp_path, tied) == []


def test_an_export_of_a_checkpoint_that_holds_a_head_twice_holds_it_once(tied, tiny_run, tiny_model_dir, tmp_path):
    folder = add_checkpoint(tiny_run, 0, tiny_model_dir("qwen3"))
    save_file(cloned(tied), folder / "model.safetensors", {"format": "pt"})
    publish(folder, step=0, world_size=2, extra={})
    run_export(tiny_run, tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == cloned(tied).keys() - {HEAD}
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out").lm_head.weight, exported[EMBEDDINGS])
