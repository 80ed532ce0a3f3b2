"""The faster encoders: the same ids and the same characters as `tokenizers`, or a reason not to be used."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from data_prep.conversation import Conversation, Message
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.tokenization import fastokens_encoder, tiktoken_encoder
from data_prep.tokenization.fast_encoder import LONGEST_TEXT, FastEncoder
from data_prep.tokenization.proof_texts import hard_texts
from data_prep.tokenization.text_encoder import TextEncoder
from data_prep.tokenization.tokenizer import load_tokenizer
from tests.support import proven_encoders
from tests.support.byte_level_tokenizer import make_tokenizer
from tests.support.real_texts import texts as real_texts

BUILD = {"tiktoken": tiktoken_encoder.build, "fastokens": fastokens_encoder.build}
PROVEN = {**BUILD, "fastokens": proven_encoders.build_proven}
ADDED = {
    "flagged": [AddedToken("<tool>", lstrip=True), AddedToken("<tool>>", rstrip=True)],
    "prefixes": [AddedToken("<tool>", normalized=False), AddedToken("<tool>>", normalized=False)],
}
CASES = [("tiktoken", kind) for kind in ("plain", "nfc", "flagged")]
CASES += [("fastokens", kind) for kind in ("plain", "nfc", "prefixes")]


def needs(encoder):
    if encoder == "fastokens":
        pytest.importorskip("fastokens", reason="fastokens is not installed: pip install -e '.[fast]'")
    return encoder


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request):
    """The encoder's name, the encoder, and the tokenizer."""
    encoder, kind = request.param
    needs(encoder)
    normalizer = None if kind == "plain" else normalizers.NFC()
    backend = make_tokenizer(normalizer=normalizer, added=ADDED.get(kind, ()))
    built = PROVEN[encoder](backend)
    assert isinstance(built, FastEncoder), built
    return encoder, built, backend


@pytest.fixture
def proven_once(monkeypatch):
    """For tests of what a proven encoder does: one proof of a tokenizer serves them all."""
    monkeypatch.setattr(fastokens_encoder, "build", proven_encoders.build_proven)


@pytest.fixture(scope="module")
def pair(case):
    return case[1:]


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


@pytest.mark.slow
@given(texts=st.lists(_TEXT, max_size=8))
@settings(max_examples=300, deadline=None)
def test_equal_on_any_text(pair, texts):
    fast, backend = pair
    assert_same(fast, backend, texts)


def test_equal_after_it_was_sent_to_another_process(pair):
    fast, backend = pair
    assert assert_same(pickle.loads(pickle.dumps(fast)), backend, list(hard_texts(["<|im_end|>"]))) > 1000


def test_what_it_cannot_answer_for_goes_to_tokenizers(case, proven_once):
    name, fast, backend = case
    encoder = TextEncoder(backend)
    assert encoder.use_fast(["a sample"], [name]) is None
    assert encoder.name.startswith(name) and encoder.is_fast
    texts = ["a" * (LONGEST_TEXT + 1), "cafe\u0301", "plain", ""]
    assert fast.encode(texts[0]) is None
    found = pickle.loads(pickle.dumps(encoder)).encode_batch(texts)
    assert [tokens.ids.tolist() for tokens in found] == [backend.encode(t, add_special_tokens=False).ids for t in texts]


def test_a_wrong_token_is_found_before_anything_is_encoded(case, monkeypatch):
    name, fast, backend = case
    right = type(fast)._encode_taken

    def swapped(self, texts):
        for tokens in right(self, texts):
            if tokens is not None and tokens.ids.size > 3:
                tokens.ids = tokens.ids[::-1].copy()
            yield tokens

    monkeypatch.setattr(type(fast), "_encode_taken", swapped)
    assert "otherwise" in BUILD[name](backend)


def test_a_sample_of_the_run_that_differs_refuses_it(case, proven_once, monkeypatch):
    name, fast, backend = case
    monkeypatch.setattr(
        type(fast), "check", lambda self, texts, tokenizer: "it differs" if list(texts) == ["odd"] else None
    )
    encoder = TextEncoder(backend)
    assert encoder.use_fast(["odd"], [name]) == f"{name}: it differs"
    assert encoder.name.startswith("tokenizers") and not encoder.is_fast


def test_the_next_encoder_is_tried_and_the_reason_kept(monkeypatch):
    monkeypatch.setattr(fastokens_encoder, "build", lambda *_: "it is not installed")
    encoder = TextEncoder(make_tokenizer(vocab_size=400))
    assert encoder.use_fast(["a sample"]) == "fastokens: it is not installed"
    assert encoder.name.startswith("tiktoken")


@pytest.mark.parametrize("name", BUILD)
def test_a_package_that_is_absent_is_a_reason(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert BUILD[name](make_tokenizer(vocab_size=400)) == "it is not installed"


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
    built = tiktoken_encoder.build(Tokenizer.from_str(json.dumps(described)))
    assert isinstance(built, str)
    assert reason in built


@pytest.mark.parametrize("name", BUILD)
def test_other_kinds_of_model_are_refused(name):
    assert "WordLevel" in BUILD[needs(name)](Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))


@pytest.mark.parametrize("name", BUILD)
def test_a_word_that_merging_does_not_make_is_right_too(name):
    """Two tokens of the same bytes by other ways: what `tokenizers` never merges must not be made."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    for token in ("ab", "bc", "abc", "xyz"):
        vocab[token] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c"), ("a", "bc")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built = BUILD[needs(name)](backend)
    assert isinstance(built, FastEncoder), built
    assert assert_same(built, backend, ["abc", "abcabc", "xyz", "bcabc", "aabbcc"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "name"),
    [("tiktoken", "qwen3"), ("tiktoken", "gpt2")]
    + [("fastokens", name) for name in ("qwen3", "gpt2", "gemma3", "llama2", "mistral_v3_spm")],
)
def test_real_tokenizers_on_real_texts(shared_data, name, encoder):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / name))
    built = PROVEN[needs(encoder)](tokenizer.backend_tokenizer)
    assert isinstance(built, FastEncoder), built
    texts = []
    for file in ("text/en/alpaca_52k.json", "text/ko/koalpaca_v1_11432.json"):
        texts += [f"<|im_start|>user\n{text}<|im_end|>\n" for text in real_texts(shared_data / file)[::20]]
    assert assert_same(built, tokenizer.backend_tokenizer, texts) > 0.9 * len(texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "name", "template", "end"),
    [
        ("tiktoken", "qwen3", "qwen3", "<|im_end|>"),
        ("fastokens", "qwen3", "qwen3", "<|im_end|>"),
        ("fastokens", "gemma3", "gemma", "<end_of_turn>"),
        ("fastokens", "mistral_v3_spm", "mistral", "</s>"),
    ],
)
def test_examples_are_equal_with_any_encoder(shared_data, proven_once, encoder, name, template, end):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / name))
    chosen = resolve_chat_template(template, tokenizer)
    slow, fast = Renderer(tokenizer, chosen), Renderer(tokenizer, chosen)
    texts = ["▁ a▁b", "한 ▁", *[*hard_texts([end])][::19]]
    rows = [
        Conversation((Message("user", t + "?"), Message("assistant", t + "!")), "s", i) for i, t in enumerate(texts)
    ]
    assert fast.use_fast_encoder(rows, [needs(encoder)]) is None
    sent = pickle.loads(pickle.dumps(fast))
    assert sent.tokenizer is None
    for a, b in zip(slow.render(rows), sent.render(rows), strict=True):
        assert type(a) is type(b)
        if hasattr(a, "labels"):
            np.testing.assert_array_equal(a.input_ids, b.input_ids)
            np.testing.assert_array_equal(a.labels, b.labels)
