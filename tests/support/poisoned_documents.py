"""A document whose tokens make a model compute NaN, for tests of bad steps."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import CORPUS
from tests.support.training import documents, make_shards


def make_poisoned_shards(folder, tokenizer_dir):
    """One document, in the last row of the epoch, has tokens that no other has."""
    sources = []
    for stage, (name, answers) in enumerate({"clean": CORPUS[:4] * 4, "poison": ["ΩΩΩ"]}.items(), 1):
        path = folder / f"{name}.json"
        rows = [{"question": f"{name} {i}?", "answer": answer} for i, answer in enumerate(answers)]
        path.write_text(json.dumps(rows), encoding="utf-8")
        sources.append({"name": name, "path": str(path), "form": "question_answer", "stage": stage})
    recipe = {"sources": sources, "order": "curriculum", "seq_len": 128, "eval_fraction": 0.0}
    return make_shards(folder, tokenizer_dir, {}, **recipe)


def poison(model_dir, shards, folder):
    """A model that computes NaN from the tokens that only the poisoned document has."""
    clean, poisoned = ({i for d in documents(shards, "train") if d[2] == source for i in d[0]} for source in (0, 1))
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        model.get_input_embeddings().weight[sorted(poisoned - clean)] = float("nan")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return folder
