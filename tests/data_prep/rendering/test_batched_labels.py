"""Labels of many texts at once: what they are one by one, whatever the texts and the spans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.conversation import BadRow
from data_prep.rendering.batched_labels import JoinedTexts
from data_prep.rendering.labels import Labeller
from data_prep.shards import IGNORE_INDEX
from data_prep.tokenization.encoded_text import ByteTokens, OffsetTokens
from data_prep.tokenization.text_encoder import TextEncoder
from tests.support.byte_level_tokenizer import make_tokenizer

PIECES = ("<|im_start|>", "<|im_end|>", "a", " the quick", "\n", " ", "한국어", "e\u0301", "😀", "don't")


@pytest.fixture(scope="module")
def labeller():
    backend = make_tokenizer()
    ends = frozenset({backend.token_to_id("<|im_end|>")})
    encoder = TextEncoder(backend)
    assert encoder.use_fast(["a sample"]) is None
    return Labeller(encoder, ends, backend.token_to_id("<|im_start|>")), encoder


@st.composite
def marked_text(draw):
    """A text and spans in it, most of which begin and end between pieces, some anywhere, some nowhere."""
    pieces = draw(st.lists(st.sampled_from(PIECES), max_size=12))
    text = "".join(pieces)
    seams = [0, *np.cumsum([len(piece) for piece in pieces]).tolist()]
    edge = st.sampled_from(seams) if draw(st.integers(0, 3)) else st.integers(-1, len(text) + 2)
    edges = sorted(draw(st.lists(edge, max_size=6, unique=True)))
    return text, list(zip(edges[::2], edges[1::2], strict=False))


@pytest.mark.slow
@given(rows=st.lists(marked_text(), max_size=10))
@settings(max_examples=300, deadline=None)
def test_the_same_as_one_by_one(labeller, rows):
    labels, encoder = labeller
    texts, spans = [text for text, _ in rows], [own for _, own in rows]
    together = labels.label_batch(texts, encoder.encode_batch(texts), spans)
    for text, own, found in zip(texts, spans, together, strict=True):
        alone = labels.label(text, encoder.encode_batch([text])[0], own)
        if isinstance(alone, BadRow):
            assert isinstance(found, BadRow)
            assert (found.reason, found.detail) == (alone.reason, alone.detail)
        else:
            assert found.input_ids.dtype == found.labels.dtype == np.int32
            assert found.input_ids.tolist() == alone.input_ids.tolist()
            assert found.labels.tolist() == alone.labels.tolist()


def test_usual_texts_are_labelled_at_once(labeller, monkeypatch):
    labels, encoder = labeller
    texts = [f"<|im_start|>the quick {word}<|im_end|>\n" for word in ("fox", "한국어", "e\u0301", "😀")]
    spans = [[(12, len(text) - 1)] for text in texts]
    encoded = encoder.encode_batch(texts)
    assert [type(tokens) for tokens in encoded] == [ByteTokens] * 4
    monkeypatch.setattr(Labeller, "label", None)  # would be called for an unusual one
    found = labels.label_batch(texts, encoded, spans)
    assert [int((one.labels != IGNORE_INDEX).sum()) for one in found] == [one.input_ids.size - 2 for one in found]


def test_texts_of_both_encoders_stay_in_order(labeller):
    labels, encoder = labeller
    texts = [f"the {number}<|im_end|>" for number in range(6)]
    encoded = encoder.encode_batch(texts)
    for i in (1, 4):
        encoded[i] = OffsetTokens(encoder.backend.encode(texts[i], add_special_tokens=False))
    found = labels.label_batch(texts, encoded, [[(0, len(text))] for text in texts])
    assert [encoder.backend.decode(one.labels.tolist(), skip_special_tokens=False) for one in found] == texts


def test_a_text_without_spans_is_not_trained(labeller):
    _, encoder = labeller
    [tokens] = encoder.encode_batch(["the quick"])
    [(ids, labels)] = JoinedTexts(["the quick"], [tokens]).labels([[]], np.array([0]), None, IGNORE_INDEX)
    assert ids.tolist() == tokens.ids.tolist()
    assert set(labels.tolist()) == {IGNORE_INDEX}


def test_an_empty_span_is_dropped_also_behind_an_end_of_turn(labeller):
    """As a template marks an answer without text: at once, it would be a row without that turn."""
    labels, encoder = labeller
    text = "<|im_start|>a<|im_end|>a<|im_end|>"
    edge = len("<|im_start|>a<|im_end|>")
    [found] = labels.label_batch([text], encoder.encode_batch([text]), [[(edge, edge), (edge, len(text))]])
    assert isinstance(found, BadRow) and found.reason == "no_trained_tokens"
