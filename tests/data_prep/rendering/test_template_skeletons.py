"""Skeletons: the same text and spans as the template itself, whatever the contents say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.conversation import Conversation, Message
from data_prep.rendering.chat_templates import ChatTemplate, built_in_names, resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.template_skeletons import Skeletons
from tests.support.word_tokenizer import MORE_SPECIAL, THOUGHTS, make_word_tokenizer

_CONTENT = st.one_of(
    st.text(min_size=1).filter(str.strip),
    st.lists(
        st.sampled_from(
            [" ", "\n", "\t", "\u3000", "Hi", "</think>", "<think>", "\U000f0000", "\U000f0001", "{{ 1 }}"]
        ),
        min_size=1,
    )
    .map("".join)
    .filter(str.strip),
)
_EXCHANGE = st.tuples(_CONTENT, _CONTENT).map(lambda both: [Message("user", both[0]), Message("assistant", both[1])])
_TURNS = st.tuples(
    st.lists(_CONTENT.map(lambda text: Message("system", text)), max_size=1),
    st.lists(_EXCHANGE, min_size=1, max_size=3),
).map(lambda parts: (*parts[0], *(m for exchange in parts[1] for m in exchange)))


@pytest.fixture(scope="module")
def renderers():
    tokenizer = make_word_tokenizer(MORE_SPECIAL, THOUGHTS)
    plain = make_word_tokenizer([], [])
    by_hand = {name: plain if name == "llama2" else tokenizer for name in built_in_names()}
    return {name: Renderer(t, resolve_chat_template(name, t)) for name, t in by_hand.items()}


@given(turns=_TURNS)
@settings(max_examples=150, deadline=None)
def test_the_same_as_the_template_whatever_the_contents(renderers, turns):
    for name, renderer in renderers.items():
        placed = renderer._skeletons.render(turns)
        holds_back = name == "qwen3" and any("</think>" in m.content for m in turns)
        assert (placed is None) == holds_back, name
        if placed:
            assert placed == renderer._render_template(Conversation(turns, "test", 0)), name


def test_other_turns_go_to_the_template(renderers):
    call = (Message("user", "Hi"), Message("assistant", "Bye", reasoning="So"))
    assert renderers["qwen3"]._skeletons.render(call) is None


@pytest.mark.parametrize(
    "text", ["{{ messages[0].content * 2 }}", "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"]
)
def test_a_template_that_does_not_place_each_content_once_is_rendered(text):
    def apply(messages):
        import jinja2

        return jinja2.Template(text).render(messages=messages), []

    skeletons = Skeletons(ChatTemplate(text, "test", has_marks=True, is_placed=True), apply)
    assert skeletons.render((Message("user", "a"), Message("assistant", "b"))) is None
