"""The tokenizer that is saved next to the shards encodes as the one in memory did."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from data_prep.shards import read_manifest
from data_prep.tokenization import saved_tokenizer
from data_prep.tokenization.saved_tokenizer import save_exactly
from data_prep.tokenization.tokenizer import load_tokenizer
from tests.conftest import CORPUS
from tests.support.training import documents, make_shards

TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
NAMES = ["gemma3", "gpt2", "llama2", "mistral_v3_spm", "qwen3"]


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=NAMES)
def real(request, shared_data):
    """A real tokenizer and its folder."""
    folder = shared_data / "tokenizers" / request.param
    return load_tokenizer(str(folder)), folder


def test_real_tokenizers_keep_their_own_files(real, tmp_path):
    tokenizer, folder = real
    assert save_exactly(tokenizer, tmp_path)
    assert files_of(tmp_path) == files_of(folder)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in (f"{tokenizer.eos_token}[INST] Hi [/INST]", "  two spaces", f"a {tokenizer.eos_token} b\n\n가"):
        assert (
            saved(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        )
    assert saved.special_tokens_map == tokenizer.special_tokens_map


def test_another_template_changes_nothing_else(real, tmp_path, monkeypatch):
    tokenizer, folder = real
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    save_exactly(tokenizer, tmp_path)
    before, after = files_of(folder), files_of(tmp_path)
    assert after.pop("chat_template.jinja") == TEMPLATE.encode()
    config, changed = (json.loads(files.pop("tokenizer_config.json")) for files in (before, after))
    assert after == before
    if "chat_template" in config:
        config["chat_template"] = TEMPLATE
    assert list(changed.items()) == list(config.items())
    messages = [{"role": "user", "content": "가 a"}]
    given, found = (
        t.apply_chat_template(messages)["input_ids"] for t in (tokenizer, AutoTokenizer.from_pretrained(tmp_path))
    )
    assert found == given


def test_one_from_the_hub_keeps_its_files_too(tiny_tokenizer, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(tiny_tokenizer.name_or_path, snapshot)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "v1").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.name_or_path = "a/b"
    save_exactly(tokenizer, tmp_path / "out", "v1")
    assert files_of(tmp_path / "out") == files_of(snapshot)
    assert "is_local" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_where_its_own_files_are_not_enough_it_is_written_anew(shared_data, tmp_path):
    """transformers' class of Llama 2 reads what transformers wrote as another tokenizer."""
    folder = shutil.copytree(shared_data / "tokenizers" / "llama2", tmp_path / "llama2")
    tokenizer = load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").unlink()
    save_exactly(tokenizer, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    )
    text = f"{tokenizer.eos_token}[INST] Hi [/INST]"
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_manifest_notes_a_tokenizer_that_was_written_anew(tiny_tokenizer, tmp_path, monkeypatch):
    folder = tiny_tokenizer.name_or_path
    own = make_shards(tmp_path / "own", folder, {"a": [1]}, eval_fraction=0)
    assert files_of(own / "tokenizer").items() >= {
        (name, b) for name, b in files_of(Path(folder)).items() if ".jinja" not in name
    }
    assert read_manifest(own)["notes"] == []
    monkeypatch.setattr(saved_tokenizer, "_own_folder", lambda *_: None)
    anew = make_shards(tmp_path / "anew", folder, {"a": [1]}, eval_fraction=0)
    assert "transformers has written it anew" in read_manifest(anew)["notes"][0]


def test_shards_hold_the_ids_that_their_own_tokenizer_gives(shared_data, tmp_path):
    folder = str(shared_data / "tokenizers" / "llama2")
    shards = make_shards(tmp_path, folder, {"a": [1]}, chat_template="llama2", eval_fraction=0)
    [(ids, _, _)] = documents(shards, "train")
    messages = [{"role": "user", "content": "a 0?"}, {"role": "assistant", "content": CORPUS[0]}]
    assert AutoTokenizer.from_pretrained(shards / "tokenizer").apply_chat_template(messages)["input_ids"] == ids


@pytest.fixture
def forgetful(tiny_tokenizer, monkeypatch):
    """Factory: reading a saved tokenizer again gives one with another pre-tokenizer, this number of times."""
    original = AutoTokenizer.from_pretrained

    def arrange(times: int):
        left = [times]

        def read(folder, *args, **kwargs):
            tokenizer = original(folder, *args, **kwargs)
            if left[0]:
                left[0] -= 1
                tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            return tokenizer

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", read)

    return arrange


@pytest.mark.parametrize(("times", "name"), [(1, None), (2, "TokenizersBackend")])
def test_the_class_is_left_out_where_it_changes_what_is_read(times, name, forgetful, tiny_tokenizer, tmp_path):
    forgetful(times)
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    save_exactly(tiny_tokenizer, tmp_path / "exact")
    plain, exact = (json.loads((tmp_path / f / "tokenizer_config.json").read_text()) for f in ("plain", "exact"))
    assert exact == {**plain, "tokenizer_class": name or plain["tokenizer_class"]}


def test_one_that_changes_all_the_same_is_refused(forgetful, tiny_tokenizer, tmp_path):
    forgetful(3)
    with pytest.raises(ValueError, match=r"encodes '.*' in another way once it is saved and read again"):
        save_exactly(tiny_tokenizer, tmp_path)


def test_lengths_and_the_order_of_a_description_are_no_difference(tiny_tokenizer, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_tokenizer.name_or_path, tmp_path / "with_lengths")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.enable_truncation(4)
    assert save_exactly(tokenizer, tmp_path / "a")  # its own files
    compared = []
    monkeypatch.setattr(saved_tokenizer, "_are_alike", lambda one, other: compared.append(one))  # None: they differ
    save_exactly(tiny_tokenizer, tmp_path / "b")
    assert len(compared) == 2
