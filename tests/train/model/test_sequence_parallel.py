"""Rows in parts: exact against separate documents, refused where they cannot be, noise by whole documents."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from train.loop.data import SourceCollator
from train.model import neftune
from train.model.sequence_limits import problems_of_parts
from train.model.sequence_parallel import Part, exchanging, make_callback

CASES = 9


@pytest.fixture(scope="module")
def compared(worlds, tmp_path_factory):
    """How far parts are from separate documents, by model, heads of keys and values, and ranks."""
    folder, found = tmp_path_factory.mktemp("parts"), {}
    for ranks in (2, 3, 4):
        words, log = [folder / "out.json"], folder / f"log{ranks}"
        codes, said = worlds.run_module("cpu_single", "tests.support.row_part_ranks", words, log, processes=ranks)
        assert codes == [0] * ranks, said[-6000:]
        found |= json.loads((folder / "out.json").read_text())
    return found


def test_loss_and_gradients_equal_those_of_separate_documents(compared):
    """With windows, keys wider than values, and heads of keys and values that ranks must repeat or share."""
    cases = {name: off for name, off in compared.items() if name != "proof"}
    assert len(cases) == CASES
    for name, off in cases.items():
        assert off["packed loss"] < 5e-7 and off["packed gradients"] < 5e-7, name
        assert off["joined gradients"] > 0.01, f"{name}: joined documents should differ"


def test_the_start_up_proof_cuts_rows_as_training_does(compared):
    """It refuses a model that does not hand the group on, and documents that see each other only where rows are cut."""
    said = compared["proof"]
    assert "they differ from separate ones by" in said["varlen_forward"]
    assert "does not keep packed documents apart" not in said["varlen_forward"]
    for broken in ("not_exchanged", "joined"):
        assert "does not keep packed documents apart" in said[broken], broken


ROW = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, -100, 7, 8, 9], "seq_lengths": [3, 2], "sources": [0, 1], "row": 4}


def test_labels_are_shifted_before_the_row_is_cut():
    """What describes the row stays whole; two tokens fill it up, each a document of its own."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=3)
    first, last = (SourceCollator(collator, Part(i, 3))([ROW, {**ROW, "row": 7}]) for i in (0, 2))
    assert first["input_ids"].tolist() == [[5, 6, 7, 8]] and last["input_ids"].tolist() == [[8, 9, 0, 0]]
    assert first["shift_labels"].tolist() == [[-100, 7, -100, 9]] == first["labels"].tolist()
    assert last["shift_labels"].tolist() == [[9, -100, -100, -100]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 0]] and last["seq_idx"].tolist() == [[3, 3, 4, 5]]
    for batch in (first, last):
        assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 8, 10, 11, 12] and batch["max_length_q"] == 3
        assert batch["source_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0]]
        assert batch["document_rows"].tolist() == [4, 4, 7, 7, -1, -1]
        assert batch["document_lengths"] == batch["cu_seq_lens_q"].diff().tolist()


def test_noise_is_scaled_by_the_whole_document():
    """NEFTune: a document of 9 tokens and one of 3, in three parts; each bound is all but reached."""
    ends, embeddings = torch.tensor([0, 9, 12], dtype=torch.int32), torch.zeros(1, 4, 4096)
    lengths = torch.tensor([9.0] * 9 + [3.0] * 3).split(4)
    for index, own in enumerate(lengths):
        largest = neftune.noise(embeddings, ends, 5.0, Part(index, 3)).abs().amax(dim=-1)[0]
        bounds = 5.0 / (own * 4096).sqrt()
        assert torch.all(largest <= bounds) and torch.all(largest > 0.99 * bounds)


def test_attention_refuses_what_it_cannot_exchange():
    class Group:
        def size(self):
            return 3

    forward = exchanging(lambda *args, **kwargs: pytest.fail("called"))
    states = torch.zeros(1, 4, 6, 8)
    ends = torch.tensor([0, 18], dtype=torch.int32)
    with pytest.raises(ValueError, match="4 heads with 4 of keys and values cannot be shared by 3 ranks"):
        forward(None, states, states, states, None, sp_group=Group(), cu_seq_lens_q=ends)
    for mask, known in ((states, ends), (None, None)):
        with pytest.raises(ValueError, match="expected a packed row with cu_seq_lens_q and without a mask"):
            forward(None, states, states, states, mask, sp_group=Group(), cu_seq_lens_q=known)


HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("settings", "ranks", "words"),
    [
        ({}, 8, None),
        ({}, 1, None),
        ({"num_key_value_heads": None}, 32, None),
        ({"layer_types": ["full_attention", "sliding_attention"], "mamba_d_state": 8}, 2, None),
        ({"rope_parameters": {"rope_type": "yarn"}, "rope_scaling": None}, 2, None),
        ({}, 3, r"ranks that can share 32 heads with 8 of keys and values \(one of \[2, 4, 8, 16, 32\]\), found 3"),
        ({"layer_types": ["conv", "full_attention"]}, 2, "has conv: such layers need a whole row"),
        ({"mamba_d_state": 8}, 2, "has mamba_d_state"),
        ({"rope_scaling": {"type": "longrope"}}, 2, "rope longrope takes its frequencies"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, 2, "rope dynamic takes"),
        ({"attn_logit_softcapping": 50.0}, 2, "caps its scores"),
    ],
)
def test_models_that_cannot_have_parts_are_refused_by_name(settings, ranks, words):
    found = "\n".join(problems_of_parts({"model_type": "any", **HEADS, **settings}, ranks))
    assert re.search(words, found) if words else found == ""


@pytest.mark.parametrize(("others", "kept"), [([1, 2], True), ([1, 1], False)])
def test_parts_of_a_row_have_random_numbers_of_their_own(others, kept, monkeypatch):
    """Those of ranks that differ stay: a resume goes on with them."""

    def gather(found, mine, group):
        found[:] = [mine if other == others[0] else other for other in others]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    drawn = []
    with torch.random.fork_rng():
        for rank in (0, 1):
            torch.manual_seed(3)
            trainer = SimpleNamespace(row_group=SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: 2))
            make_callback(trainer).on_train_begin(SimpleNamespace(seed=7), None, None)
            drawn.append(torch.rand(4))
        torch.manual_seed(3)
        make_callback(SimpleNamespace(row_group=None)).on_train_begin(SimpleNamespace(seed=7), None, None)
        whole = torch.rand(4)
    assert torch.equal(*drawn) is kept and torch.equal(drawn[0], whole) is kept
