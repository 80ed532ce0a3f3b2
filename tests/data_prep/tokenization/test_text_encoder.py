"""What makes `tokenizers` itself faster changes no token, and nothing of the tokenizer that is saved."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.tokenization import text_encoder
from data_prep.tokenization.text_encoder import TextEncoder, merges_make_all
from tests.support.byte_level_tokenizer import CORPUS, make_tokenizer
from tests.support.real_texts import texts as real_texts


@pytest.fixture(scope="module")
def pair():
    """The encoder that looks words up, and the tokenizer as it comes."""
    encoder = TextEncoder(make_tokenizer())
    assert encoder.look_words_up()
    return pickle.loads(pickle.dumps(encoder)), make_tokenizer()


def assert_same(encoder, backend, texts):
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    for text, ours, theirs in zip(texts, encoder.encode_batch(texts), encodings, strict=True):
        assert ours.ids.tolist() == theirs.ids, text
        assert [ours.characters_of(i) for i in range(len(theirs.ids))] == theirs.offsets, text


_WORDS = st.sampled_from([*{word for text in CORPUS for word in text.split()}, "<|im_end|>", " ", "\n", "한", "é"])


@given(texts=st.lists(st.one_of(st.text(max_size=60), st.lists(_WORDS, max_size=20).map(" ".join)), max_size=8))
@settings(max_examples=200, deadline=None)
def test_words_looked_up_are_what_merging_makes_of_them(pair, texts):
    assert pair[0].backend.model.ignore_merges
    assert_same(*pair, texts)


def test_a_vocabulary_with_a_token_that_merging_does_not_make_is_refused():
    described = json.loads(make_tokenizer().to_str())
    vocab, merges = described["model"]["vocab"], described["model"]["merges"]
    longest = max(vocab, key=len)
    described["model"]["merges"] = [pair for pair in merges if "".join(pair) != longest]
    changed = json.dumps(described)
    encoder = TextEncoder(Tokenizer.from_str(changed))
    assert not encoder.look_words_up() and not encoder.backend.model.ignore_merges
    # The refusal is what keeps it right: looked up, the word is another token.
    word = longest.replace("Ġ", " ")
    wrong = Tokenizer.from_str(changed)
    wrong.model.ignore_merges = True
    assert wrong.encode(word).ids == [vocab[longest]] != encoder.backend.encode(word).ids


def test_the_tokenizer_that_is_saved_stays_as_it_is():
    backend = make_tokenizer()
    before, encoder = backend.to_str(), TextEncoder(backend)
    assert encoder.look_words_up() and encoder.backend.model.ignore_merges
    assert backend.to_str() == before and not backend.model.ignore_merges


def test_only_the_first_encodings_are_held_and_none_that_is_long(monkeypatch):
    monkeypatch.setattr(text_encoder, "_HELD_TOKENS", 50)
    encoder = TextEncoder(make_tokenizer())
    encoder.encode_batch(["the quick brown fox jumps over it " * 100])
    assert not encoder._held
    for _ in range(10):
        encoder.encode_batch(["the quick brown fox"] * 2)
    assert 0 < sum(map(len, encoder._held)) <= 50 < sum(map(len, encoder._held)) + len(encoder._held[0])
    assert pickle.loads(pickle.dumps(encoder))._held == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3", "llama2"])
def test_real_vocabularies(shared_data, name):
    """Only where each token is what merging makes of it; GPT-2's end of text is not."""
    backend = Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json"))
    assert merges_make_all(backend) == (name == "qwen3")
    if name == "qwen3":
        encoder = TextEncoder(Tokenizer.from_str(backend.to_str()))
        assert encoder.look_words_up()
        for file in ("text/en/alpaca_52k.json", "text/ko/koalpaca_v1_11432.json"):
            assert_same(encoder, backend, real_texts(shared_data / file)[::20])
