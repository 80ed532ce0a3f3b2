"""The faster encoder: the same ids and the same characters as `tokenizers`, or a reason not to be used."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_prep.chat_templates import load_tokenizer, resolve_chat_template
from data_prep.conversation import Conversation, Message
from data_prep.encoded_text import TextEncoder
from data_prep.fast_encoder import LONGEST_TEXT, FastEncoder, build
from data_prep.hard_texts import hard_texts
from data_prep.rendering import Renderer
from tests.real_texts import texts as real_texts

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [*hard_texts(), "the quick brown fox jumps over the lazy dog. " * 20, "안녕하세요, 한국어 문장입니다. " * 20]


def make_tokenizer(pattern=QWEN_PATTERN, normalizer=None, added=(), vocab_size=1500):
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens(list(added))
    return backend


@pytest.fixture(scope="module", params=["plain", "nfc", "flagged"])
def pair(request):
    added = (
        [AddedToken("<tool>", lstrip=True), AddedToken("<tool>>", rstrip=True)] if request.param == "flagged" else []
    )
    backend = make_tokenizer(normalizer=None if request.param == "plain" else normalizers.NFC(), added=added)
    built = build(backend)
    assert isinstance(built, FastEncoder), built
    return built, backend


def assert_same(fast, backend, texts):
    answered = 0
    for text, tokens in zip(texts, fast.encode_batch(texts), strict=True):
        if tokens is None:
            continue
        answered += 1
        encoding = backend.encode(text, add_special_tokens=False)
        assert tokens.ids.tolist() == encoding.ids, text
        assert [tokens.characters_of(i) for i in range(len(encoding.ids))] == encoding.offsets, text
    return answered


_TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_",
                "<tool>",
                "<tool>>",
                " ",
                "\n",
                "é",
                "e\u0301",
                "한",
                "ᄒ",
                "ᅡ",
                "ᆫ",
                "😀",
                "don't",
                "a1",
            ]
        ),
        max_size=20,
    ).map("".join),
)


@given(texts=st.lists(_TEXT, max_size=8))
@settings(max_examples=300, deadline=None)
def test_equal_on_any_text(pair, texts):
    fast, backend = pair
    assert_same(fast, backend, texts)


def test_equal_after_it_was_sent_to_another_process(pair):
    fast, backend = pair
    assert assert_same(pickle.loads(pickle.dumps(fast)), backend, list(hard_texts(["<|im_end|>"]))) > 1000


def test_what_it_cannot_answer_for_goes_to_tokenizers(pair):
    fast, backend = pair
    encoder = TextEncoder(backend)
    assert encoder.use_fast(["a sample"]) is None
    assert encoder.name.startswith("tiktoken")
    texts = ["a" * (LONGEST_TEXT + 1), "cafe\u0301", "plain", ""]
    assert fast.encode(texts[0]) is None
    found = pickle.loads(pickle.dumps(encoder)).encode_batch(texts)
    assert [tokens.ids.tolist() for tokens in found] == [backend.encode(t, add_special_tokens=False).ids for t in texts]


def test_a_wrong_token_is_found_before_anything_is_encoded(pair, monkeypatch):
    _, backend = pair
    right = FastEncoder._encode_joined

    def swapped(self, texts):
        for tokens in right(self, texts):
            if tokens is not None and tokens.ids.size > 3:
                tokens.ids = tokens.ids[::-1].copy()
            yield tokens

    monkeypatch.setattr(FastEncoder, "_is_plain", True, raising=False)
    monkeypatch.setattr(FastEncoder, "_encode_joined", swapped)
    monkeypatch.setattr("data_prep.fast_encoder._is_plain", lambda added: True)
    assert "otherwise" in build(backend)


def test_a_sample_of_the_run_that_differs_refuses_it(pair, monkeypatch):
    _, backend = pair
    monkeypatch.setattr(
        FastEncoder, "check", lambda self, texts, tokenizer: "it differs" if list(texts) == ["odd"] else None
    )
    encoder = TextEncoder(backend)
    assert encoder.use_fast(["odd"]) == "it differs"
    assert encoder.name.startswith("tokenizers")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["model"].update(byte_fallback=True), "falls back to bytes"),
        (lambda d: d["model"].update(dropout=0.1), "dropout"),
        (lambda d: d.update(normalizer={"type": "NFKC"}), "otherwise than by NFC"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "otherwise than by NFC"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "puts a space"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"), "differs between regex"),
        (lambda d: d["model"]["merges"].reverse(), "order of the ids"),
        (lambda d: d.update(pre_tokenizer=None), "pre-tokenizer"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_the_reason(change, reason):
    described = json.loads(make_tokenizer(vocab_size=400).to_str())
    change(described)
    built = build(Tokenizer.from_str(json.dumps(described)))
    assert isinstance(built, str)
    assert reason in built


def test_other_kinds_of_model_are_refused():
    assert "WordLevel" in build(Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))


def test_a_word_that_merging_does_not_make_is_right_too():
    """Two tokens of the same bytes by other ways: what `tokenizers` never merges must not be made."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    for token in ("ab", "bc", "abc", "xyz"):
        vocab[token] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c"), ("a", "bc")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built = build(backend)
    assert isinstance(built, FastEncoder), built
    assert assert_same(built, backend, ["abc", "abcabc", "xyz", "bcabc", "aabbcc"]) == 5


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_real_tokenizers_on_real_texts(shared_data, name):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / name))
    built = build(tokenizer.backend_tokenizer)
    assert isinstance(built, FastEncoder), built
    texts = []
    for file in ("text/en/alpaca_52k.json", "text/ko/koalpaca_v1_11432.json"):
        texts += [f"<|im_start|>user\n{text}<|im_end|>\n" for text in real_texts(shared_data / file)[::20]]
    assert assert_same(built, tokenizer.backend_tokenizer, texts) > 0.9 * len(texts)


def test_examples_are_equal_with_either_encoder(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers/qwen3"))
    template = resolve_chat_template("qwen3", tokenizer)
    slow, fast = Renderer(tokenizer, template), Renderer(tokenizer, template)
    texts = [*hard_texts(["<|im_end|>"])][::7]
    rows = [
        Conversation((Message("user", t + "?"), Message("assistant", t + "!")), "s", i) for i, t in enumerate(texts)
    ]
    assert fast.use_fast_encoder(rows) is None
    sent = pickle.loads(pickle.dumps(fast))
    assert sent.tokenizer is None
    for a, b in zip(slow.render(rows), sent.render(rows), strict=True):
        assert type(a) is type(b)
        if hasattr(a, "labels"):
            np.testing.assert_array_equal(a.input_ids, b.input_ids)
            np.testing.assert_array_equal(a.labels, b.labels)
