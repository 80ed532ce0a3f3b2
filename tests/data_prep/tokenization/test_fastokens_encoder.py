"""fastokens: what it is refused for, what its proof finds, and tokenizers that write spaces as a sign."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from data_prep.tokenization import fastokens_encoder
from data_prep.tokenization.encoded_text import OffsetTokens
from data_prep.tokenization.fastokens_encoder import FastokensEncoder, build
from data_prep.tokenization.proof_texts import hard_texts, long_texts
from data_prep.tokenization.space_before import take_out
from data_prep.tokenization.text_encoder import TextEncoder
from tests.conftest import ROOT
from tests.support.byte_level_tokenizer import make_tokenizer
from tests.support.sign_tokenizer import make_sign_tokenizer

pytest.importorskip("fastokens", reason="fastokens is not installed: pip install -e '.[fast]'")

THREADS = Path("/proc/self/task")
PLAIN = [AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)]  # Gemma has such


@pytest.fixture(scope="module")
def signs():
    """The encoder, sent to another process, and the tokenizer."""
    backend = make_sign_tokenizer(PLAIN)
    built = build(backend)
    assert isinstance(built, FastokensEncoder), built
    return pickle.loads(pickle.dumps(built)), backend


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


PIECES = ["<end_of_turn>", "<end_of_", "<0x0A>", "<unk>", "▁", " ", "\n", "é", "한", "👩‍👩‍👧‍👦", "the ", "\x00"]


@given(texts=st.lists(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES)).map("".join)), max_size=8))
@settings(max_examples=200, deadline=None)
def test_signs_for_spaces_and_bytes_for_characters_on_any_text(signs, texts):
    assert_same(*signs, texts)


def test_hard_texts_with_signs_for_spaces(signs):
    texts = [*hard_texts(["<end_of_turn>"]), *long_texts()]
    assert assert_same(*signs, texts) > 0.99 * len(texts)


def test_all_bytes_of_a_character_are_its_own(signs):
    fast, backend = signs
    tokens = fast.encode("a 𝒜 b")
    assert [tokens.characters_of(i) for i in range(tokens.ids.size)].count((2, 3)) == 4
    assert tokens.tokens_of(2, 3) == (tokens.ids.size - 5, tokens.ids.size - 2)
    assert backend.decode(tokens.ids.tolist()) == "a 𝒜 b"


def test_a_text_that_holds_the_sign_goes_to_tokenizers(signs):
    fast, backend = signs
    texts = ["a▁b", "▁▁", "a b"]
    assert [tokens is None for tokens in fast.encode_batch(texts)] == [True, True, False]
    encoder = TextEncoder(backend)
    assert encoder.use_fast(texts, ["fastokens"]) is None
    expected = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert [tokens.ids.tolist() for tokens in encoder.encode_batch(texts)] == expected


def prepend(described):
    steps = [{"type": "Prepend", "prepend": "▁"}, described["normalizer"]]
    described["normalizer"] = {"type": "Sequence", "normalizers": steps}


def metaspace(scheme, **settings):
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False, **settings}
    return lambda described: described.update(normalizer=None, pre_tokenizer=metaspace)


SCHEMES = {"prepend": prepend, **{scheme: metaspace(scheme) for scheme in ("always", "first", "never")}}


@pytest.fixture(scope="module", params=SCHEMES)
def with_spaces(request):
    """An encoder that puts spaces, sent to another process, and its tokenizer."""
    backend = make_sign_tokenizer(PLAIN, SCHEMES[request.param])
    described = json.loads(backend.to_str())
    return pickle.loads(pickle.dumps(fastokens_encoder._encoder(described))), backend


@given(texts=st.lists(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES)).map("".join)), max_size=8))
@settings(max_examples=150, deadline=None)
def test_spaces_before_texts_on_any_text(with_spaces, texts):
    fast, backend = with_spaces
    assert_same(fast, backend, texts)
    for text, tokens in zip(texts, fast.encode_batch(texts), strict=True):
        if tokens is None:
            continue
        expected = OffsetTokens(backend.encode(text, add_special_tokens=False))
        for start, end in combinations(range(len(text) + 1), 2):
            assert tokens.tokens_of(start, end) == expected.tokens_of(start, end), (text, start, end)


def test_spaces_before_texts_are_proven_and_answered(with_spaces):
    fast, backend = with_spaces
    texts = [*hard_texts(["<end_of_turn>"])]
    assert fast.check(texts, backend) is None
    assert sum(tokens is not None for tokens in fast.encode_batch(texts)) > 0.99 * len(texts)


def test_a_token_that_may_be_found_in_a_space_that_was_put_refuses_it():
    for added in (AddedToken(" x", normalized=False), AddedToken("x", normalized=True)):
        assert "may be found in a space" in build(make_sign_tokenizer([added], prepend))
    with pytest.raises(ValueError, match="something else"):
        take_out({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": None})


def of_model(**settings):
    return lambda described: described["model"].update(settings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(normalizer=None), "something else than to write spaces"),
        (lambda d: d["normalizer"].update(content="_"), "something else than to write spaces"),
        (metaspace("always", split=True), "splits at spaces"),
        (metaspace("always", replacement="_"), "splits at spaces"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "splits text that has no spaces"),
        (lambda d: d["model"]["vocab"].pop("<0x41>"), "1 bytes are no tokens"),
        (of_model(dropout=0.1), "dropout"),
        (of_model(byte_fallback=False), "pre-tokenizer is not one split"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_the_reason(change, reason):
    assert reason in build(make_sign_tokenizer(change=change))


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ([AddedToken("<tool>", lstrip=True)], "'<tool>' takes white space"),
        ([AddedToken("<tool>", rstrip=True)], "'<tool>' takes white space"),
        ([AddedToken("tool", single_word=True)], "'tool' takes white space, or wants to be a word"),
        ([AddedToken("d|>x", normalized=True)], "'<|im_end|>' and 'd|>x' can overlap"),
        ([AddedToken("x<|im", normalized=True)], "'<|im_start|>' and 'x<|im' can overlap"),
    ],
)
def test_added_tokens_that_it_may_find_elsewhere_refuse_it(added, reason):
    assert reason in build(make_tokenizer(vocab_size=400, added=added))


def test_a_difference_in_one_character_is_found(monkeypatch):
    monkeypatch.setattr(FastokensEncoder, "_ids_of", spoiled(lambda texts, i: "\u0d4e" in texts[i]))
    assert "otherwise" in build(make_tokenizer(vocab_size=400))


def test_ids_that_depend_on_the_text_before_are_found(monkeypatch):
    def goes_on_as_before(texts, i):
        return i and len(texts[i]) > 4096 and texts[i][:4096] == texts[i - 1][:4096]

    monkeypatch.setattr(FastokensEncoder, "_ids_of", spoiled(goes_on_as_before))
    assert "otherwise" in build(make_tokenizer(vocab_size=400))


def spoiled(is_wrong):
    """Gives the last token of some texts another id."""
    right = FastokensEncoder._ids_of

    def wrong(self, texts, *how):
        ids, stops = right(self, texts, *how)
        ids = ids.copy()
        for i in range(len(texts)):
            if is_wrong(texts, i):
                ids[stops[i + 1] - 1] ^= 1
        return ids, stops

    return wrong


def test_the_normalizer_is_never_its_own():
    """It knows newer characters than that of `tokenizers`."""
    backend = make_tokenizer(normalizer=normalizers.NFC())
    built = build(backend)
    assert json.loads(built._serialised)["normalizer"] is None
    assert assert_same(built, backend, ["a\u1df6\u0301", "é"]) == 2


def test_a_text_that_its_regex_engine_fails_on_goes_to_tokenizers(signs, monkeypatch):
    fast, backend = signs
    right = FastokensEncoder._ids_of

    def fails(self, texts, *how):
        if "bad" in texts:
            raise ValueError("match limit exceeded")
        return right(self, texts, *how)

    monkeypatch.setattr(FastokensEncoder, "_ids_of", fails)
    found = fast.encode_batch(["good one", "bad", "good two"])
    assert found[1] is None
    assert [tokens.ids.tolist() for tokens in found[::2]] == [backend.encode(t).ids for t in ("good one", "good two")]


@pytest.mark.skipif(not THREADS.is_dir(), reason="counts threads as Linux shows them")
def test_it_starts_no_threads(signs):
    code = "import pickle, sys, pathlib; encoder = pickle.load(sys.stdin.buffer); t = pathlib.Path('/proc/self/task')\n"
    code += "before = len([*t.iterdir()]); encoder.encode_batch(['the quick brown fox ' * 2000] * 200)\n"
    code += "print(len([*t.iterdir()]) - before)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(signs[0]), capture_output=True, cwd=ROOT)
    assert done.stdout.strip() == b"0", done.stderr
