"""Losses of single documents: against each document by itself, over a stop, and in parts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.packed_rows import PackedDocument, PackedRows
from data_prep.shards import IGNORE_INDEX, manifest_sha256, read_manifest
from tests.support.training import make_shards
from train import score
from train.scoring import losses
from train.scoring.file import ScoreFile, read_scores


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1, 2, 3, 1, 5, 1] * 3, "long": [6, 4, 5]}
    return make_shards(tmp_path_factory.mktemp("score"), tiny_tokenizer.name_or_path, answers, eval_fraction=0.2)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_model_dir, tiny_tokenizer):
    """As an export: a model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path).save_pretrained(folder)
    return folder


def alone(model, document: PackedDocument) -> tuple[float, float]:
    """Loss and accuracy by the definition."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(document.input_ids.astype(np.int64))[None]).logits[0].double()
    places = np.flatnonzero(document.labels[1:] != IGNORE_INDEX)
    targets = torch.from_numpy(document.labels[1:][places].astype(np.int64))
    found = logits[places].log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return -found.mean().item(), (logits[places].argmax(-1) == targets).double().mean().item()


def test_each_document_is_scored_as_by_itself(shards, model_dir, capsys, tmp_path):
    """Whatever it is padded with; source and raw row are those of the provenance, means those of an evaluation."""
    output = tmp_path / "scores.jsonl"
    words = [str(model_dir), str(shards), "--split", "train", "--output", str(output), "--worst", "2"]
    assert score.main([*words, "--batch_tokens", "600"]) == 0
    head, found = read_scores(output)
    manifest = read_manifest(shards)
    rows, model = PackedRows(shards, manifest, "train"), AutoModelForCausalLM.from_pretrained(model_dir)
    documents = [document for row in range(len(rows)) for document in rows.documents(row)]
    assert head["manifest_sha256"] == manifest_sha256(shards) and len(found) == len(documents) > 10
    for one, document in zip(found, documents, strict=True):
        assert (one["loss"], one["accuracy"]) == pytest.approx(alone(model, document), abs=1e-5)
        assert (one["tokens"], one["trained_tokens"]) == (document.input_ids.size, document.trained_tokens)
        assert one["source"] == manifest["sources"][document.source]["name"]
    raw = {source: [one["raw_row"] for one in found if one["source"] == source] for source in ("short", "long")}
    assert all(len(set(numbers)) == len(numbers) for numbers in raw.values()) and max(raw["short"]) < 18
    said = capsys.readouterr().out
    short = [one for one in found if one["source"] == "short"]
    mean = sum(one["loss"] * one["trained_tokens"] for one in short) / sum(one["trained_tokens"] for one in short)
    assert f"short: loss {mean:.4f}" in said
    worst = max(found, key=lambda one: one["loss"])
    assert f"  {worst['loss']:.3f}  {worst['source']}:{worst['raw_row']}  " in said


def test_a_document_without_trained_tokens_has_no_loss(model_dir):
    ids = np.arange(4, 12, dtype=np.int32)
    nothing = PackedDocument(0, ids, np.full(8, IGNORE_INDEX, np.int32))
    something = PackedDocument(0, ids[:5], ids[:5])
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    first, second = losses.score(model, [nothing, something], 100)
    assert math.isnan(first.loss) and second.loss == pytest.approx(alone(model, something)[0], abs=1e-5)
    with pytest.raises(ValueError, match="the shards hold the token id 99999"):
        losses.score(model, [PackedDocument(0, np.array([99999], np.int32), np.array([5], np.int32))], 100)


def test_batches_hold_each_document_once_and_no_more_than_asked():
    lengths = [5, 9, 2, 9, 7, 1, 30]
    found = list(losses.batches(lengths, 18))
    assert sorted(number for batch in found for number in batch) == list(range(7))
    assert found[0] == [6] and all(lengths[batch[0]] * len(batch) <= 18 for batch in found[1:])


def test_after_a_stop_the_same_bytes(shards, model_dir, tmp_path, monkeypatch):
    """Stopped between and within chunks, by an error and by a line that was cut off."""
    monkeypatch.setattr(score, "CHUNK", 4)
    words = [str(model_dir), str(shards), "--split", "train", "--worst", "0", "--output"]
    assert score.main([*words, str(tmp_path / "whole.jsonl")]) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (0, 1, 5, 7, len(lines)):
        part = tmp_path / f"cut-{kept}.jsonl.part"
        part.write_bytes(b"".join(lines[:kept]) + b'{"source": "sh')
        assert score.main([*words, str(tmp_path / f"cut-{kept}.jsonl")]) == 0
        assert (tmp_path / f"cut-{kept}.jsonl").read_bytes() == whole and not part.exists()


def test_parts_are_the_whole(shards, model_dir, tmp_path):
    words = [str(model_dir), str(shards), "--split", "train", "--worst", "0", "--output", str(tmp_path / "s.jsonl")]
    assert score.main(words) == 0
    for number in (1, 2):
        assert score.main([*words, "--part", f"{number}/2"]) == 0
    whole, *parts = [read_scores(tmp_path / name)[1] for name in ("s.jsonl", "s-1-of-2.jsonl", "s-2-of-2.jsonl")]
    assert all(parts)
    for one, other in zip([*parts[0], *parts[1]], whole, strict=True):
        assert one == {**other, "loss": pytest.approx(other["loss"], abs=1e-5)}


@pytest.mark.parametrize("words", [["--part", "3/2"], ["--part", "x"], ["--batch_tokens", "0"]])
def test_what_is_refused(words, shards, model_dir, capsys):
    assert score.main([str(model_dir), str(shards), *words]) == 2
    assert "expected" in capsys.readouterr().err


def test_scores_of_something_else_are_not_added_to(tmp_path):
    file = ScoreFile(tmp_path / "s.jsonl", {"model": "a", "split": "eval"})
    assert file.done(4) == 0
    with pytest.raises(ValueError, match=r"scores of something else .*'model': 'a'"):
        ScoreFile(tmp_path / "s.jsonl", {"model": "b", "split": "eval"}).done(4)
    file.finish()
    assert json.loads((tmp_path / "s.jsonl").read_text()) == file.head
    with pytest.raises(ValueError, match="is there already"):
        file.done(4)
