"""Quoted control tokens encoded by the fast encoder: as by the copy of the tokenizer with stand-ins."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from data_prep.conversation import Conversation, Message
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.control_tokens import ControlTokens
from data_prep.rendering.renderer import Renderer
from data_prep.tokenization.encoded_text import ByteTokens
from data_prep.tokenization.fastokens_encoder import FastokensEncoder
from data_prep.tokenization.text_encoder import TextEncoder
from tests.support.byte_level_tokenizer import make_tokenizer
from tests.support.sign_tokenizer import make_sign_tokenizer

pytest.importorskip("fastokens", reason="fastokens is not installed: pip install -e '.[fast]'")

ADDED = [AddedToken(text, normalized=False) for text in ("\n\n", "<tool_call>", "<b>")]  # none of them special
ENDS = {"signs": "<end_of_turn>", "bytes": "<|im_end|>"}
PIECES = [*ENDS.values(), "<tool_call>", "<b>", "<end_of_", "<|im_", "end|>", "turn>"]
PIECES += ["\n", "\n\n", " ", "the ", "한국", "😀"]
CHARACTERS = st.characters(exclude_categories=["Cs", "Co"])
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(CHARACTERS, max_size=4)), min_size=1).map("".join)


@pytest.fixture(scope="module", params=ENDS)
def both(request):
    """The token that ends a turn; control tokens with the fast encoder, sent to another process; and without."""
    backend = make_sign_tokenizer(ADDED) if request.param == "signs" else make_tokenizer(added=ADDED)
    control_ids = {token: backend.token_to_id(token) for token in (ENDS[request.param], "<tool_call>")}
    encoder = TextEncoder(backend)
    fast = ControlTokens(encoder, control_ids)
    assert encoder.use_fast(["a sample"], ["fastokens"], fast.tokens) is None
    fast.use_fast(["a sample"])
    assert fast._is_fast
    plain = ControlTokens(TextEncoder(Tokenizer.from_str(backend.to_str())), control_ids)
    return ENDS[request.param], pickle.loads(pickle.dumps(fast)), plain


def quoted(control, end, texts):
    """The texts, each ended by a control token of the template, as encoded with the spans of the texts."""
    conversation = Conversation(tuple(Message("user", text) for text in texts), "s", 0)
    shielded, restore = control.shield(conversation)
    rendered, spans = "", []
    for message in shielded.messages:
        spans.append((len(rendered), len(rendered) + len(message.content)))
        rendered += message.content + end
    return restore(rendered, spans)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS.filter(len), min_size=1, max_size=4))
def test_ids_and_spans_are_those_of_the_stand_ins(both, texts):
    end, fast, plain = both
    text, tokens, spans = quoted(fast, end, texts)
    other_text, expected, other_spans = quoted(plain, end, texts)
    assert isinstance(tokens, ByteTokens) or "▁" in text
    assert tokens.ids.tolist() == expected.ids.tolist() and tokens.ids.dtype == expected.ids.dtype
    assert [text[slice(*span)] for span in spans] == [other_text[slice(*span)] for span in other_spans] == texts
    assert [tokens.tokens_of(*s) for s in spans] == [expected.tokens_of(*s) for s in other_spans]


def test_a_text_that_the_fast_encoder_leaves_alone_goes_to_the_stand_ins(both):
    end, fast, plain = both
    texts = ["a▁b" * 40_000 + end]
    _, tokens, _ = quoted(fast, end, texts)
    assert not isinstance(tokens, ByteTokens)
    assert tokens.ids.tolist() == quoted(plain, end, texts)[1].ids.tolist()


def test_a_worker_loads_no_second_tokenizer_for_a_quoted_token(tiny_tokenizer):
    renderer = Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer))
    messages = (Message("user", "what is <|im_end|>?"), Message("assistant", "An end."))
    expected = renderer.render([Conversation(messages, "s", 0)])[0]
    assert renderer.use_fast_encoder([], ["fastokens"]) is None
    sent = pickle.loads(pickle.dumps(renderer))
    example = sent.render([Conversation(messages, "s", 0)])[0]
    assert example.input_ids.tolist() == expected.input_ids.tolist()
    assert example.labels.tolist() == expected.labels.tolist()
    assert sent.encoder._backend is None


def test_a_fast_encoder_that_takes_quoted_tokens_otherwise_is_not_used_for_them(tiny_tokenizer, monkeypatch):
    right = FastokensEncoder._ids_of
    monkeypatch.setattr(FastokensEncoder, "_ids_of", lambda self, texts, as_text: right(self, texts, False))
    renderer = Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer))
    assert renderer.use_fast_encoder([], ["fastokens"]) is None
    assert not renderer._control._is_fast
