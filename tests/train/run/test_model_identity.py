"""Two models are one by their content, wherever they lie; what trains, quantises or reconfigures one is seen."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.run import model_identity
from train.run.model_identity import difference, file_digests, model_digests


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
    return tmp_path / "model"


def test_a_copy_elsewhere_is_the_same_model(folder, tiny_model_dir):
    (folder / "README.md").write_text("moved")
    config = json.loads((folder / "config.json").read_text())
    passing = {"_name_or_path": "/somewhere", "transformers_version": "1", "use_cache": False}
    (folder / "config.json").write_text(json.dumps({**config, **passing}, indent=4))
    assert model_digests(str(folder)) == model_digests(str(tiny_model_dir("llama")))
    assert model_digests(str(folder)).keys() == {"config", "weights"}


def test_files_that_are_split_otherwise_hold_the_same_model(folder):
    before = model_digests(str(folder))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(weights.items())[i::2]) for i in range(2)}
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_digests(str(folder)) == before
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert model_digests(str(folder)) is None  # not all of it is here


def test_the_file_that_differs_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["a.safetensors", "b.safetensors"]
    parts = {name: dict(list(weights.items())[i::2]) for i, name in enumerate(names)}
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = file_digests(str(folder))
    assert set(before) == {"config.json", *names}
    save_file({name: tensor + 1 for name, tensor in parts["b.safetensors"].items()}, folder / "b.safetensors")
    now = file_digests(str(folder))
    assert [name for name in now if now[name] != before[name]] == ["b.safetensors"]
    (folder / "a.safetensors").unlink()
    assert file_digests(str(folder)) is None


def changed_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {**w, "model.norm.weight": w["model.norm.weight"] + 1e-6},
        lambda w: {k.replace("layers.1", "layers.2"): v for k, v in w.items()},
        lambda w: {k: v.to(torch.bfloat16) for k, v in w.items()},
        lambda w: {**w, "lm_head.weight": w["lm_head.weight"].t().contiguous()},
    ],
    ids=["one_tensor", "name", "dtype", "shape"],
)
def test_other_weights_are_another_model(change, folder):
    before = model_digests(str(folder))
    changed_weights(folder, change)
    now = model_digests(str(folder))
    assert now["config"] == before["config"]
    assert (
        difference(before, now) == f"other weights (weights {before['weights'][:12]} then, {now['weights'][:12]} now)"
    )


def test_another_configuration_is_another_model(folder):
    before = model_digests(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert "another configuration" in difference(before, model_digests(str(folder)))


def test_a_large_tensor_is_read_in_places(folder, monkeypatch):
    """The first and the last bytes among what is read; the rest of a large tensor is not."""
    monkeypatch.setattr(model_identity, "BLOCK", 16)
    monkeypatch.setattr(model_identity, "PLACES", 1)
    before = model_digests(str(folder))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    end = len(content) - 1  # the last tensor's last byte
    for place, seen in ((end, True), (end - 60, False)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert (model_digests(str(folder)) != before) is seen


def test_a_model_of_the_hub_is_known_by_its_commit_too(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model, name, revision: str(folder / name))
    assert model_digests("org/name", "main") == {**model_digests(str(folder)), "commit": "model"}


def test_a_model_that_is_not_here_has_no_digests_and_differs_from_none(tmp_path):
    assert model_digests("org/absent") is None
    assert model_digests(str(tmp_path)) is None
    assert difference(None, {"config": "a"}) is difference({"config": "a"}, None) is None


def test_a_file_that_is_not_safetensors_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"model.safetensors: expected a safetensors file"):
        model_digests(str(folder))


def test_pickled_weights_are_known_by_their_bytes(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    before = model_digests(str(folder))
    content = bytearray((folder / "pytorch_model.bin").read_bytes())
    content[100] ^= 1
    (folder / "pytorch_model.bin").write_bytes(content)
    assert difference(before, model_digests(str(folder)))
