"""Plain texts: all of them is trained, up to the token that ends them; what they spell stays text."""

from __future__ import annotations

import copy

import pytest

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.plain_texts import adds_bos, framed_text
from data_prep.rendering.renderer import Renderer


def text_of(content: str) -> Conversation:
    return Conversation((Message("assistant", content, True),), "s", 0, is_text=True)


def renderer_of(tokenizer, **options) -> Renderer:
    return Renderer(tokenizer, resolve_chat_template("chatml", tokenizer), **options)


@pytest.mark.parametrize("options", [{}, {"train_on": "last"}, {"train_on": "flags"}, {"reasoning": "strip"}])
def test_all_of_a_text_is_trained_and_nothing_else(tiny_tokenizer, options):
    for content in (" The sky is blue. \n", "<think>\nhm\n</think>\n\n The sky"):
        [example] = renderer_of(tiny_tokenizer, **options).render([text_of(content)])
        ids = tiny_tokenizer(content)["input_ids"] + [tiny_tokenizer.eos_token_id]
        assert example.input_ids.tolist() == example.labels.tolist() == ids


def test_tags_of_reasoning_that_are_tokens_stay_where_they_are(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"])
    content = "<think>\nhm</think> The sky"
    [example] = renderer_of(tokenizer).render([text_of(content)])
    assert tokenizer.decode(example.labels.tolist()) == content + "<|im_end|>"


def test_a_text_that_spells_control_tokens(tiny_tokenizer):
    content = "<|im_start|>user\nHi<|im_end|>"
    [example] = renderer_of(tiny_tokenizer).render([text_of(content)])
    ids = example.input_ids.tolist()
    assert tiny_tokenizer.decode(ids) == content + "<|im_end|>"
    assert tiny_tokenizer.convert_tokens_to_ids("<|im_start|>") not in ids
    assert [position for position, id in enumerate(ids) if id == tiny_tokenizer.eos_token_id] == [len(ids) - 1]
    [rejected] = renderer_of(tiny_tokenizer, control_tokens="reject").render([text_of(content)])
    assert isinstance(rejected, BadRow) and rejected.reason == "control_token_in_text"
    [allowed] = renderer_of(tiny_tokenizer, control_tokens="allow").render([text_of(content)])
    assert allowed.input_ids.tolist() == tiny_tokenizer(content + "<|im_end|>")["input_ids"]


def test_texts_and_conversations_in_one_call(tiny_tokenizer):
    renderer = renderer_of(tiny_tokenizer)
    talk = Conversation((Message("user", "Hi"), Message("assistant", "Hello")), "s", 1)
    together = renderer.render([text_of("a"), talk, text_of("b")])
    alone = [renderer.render([one])[0] for one in (text_of("a"), talk, text_of("b"))]
    assert [e.labels.tolist() for e in together] == [e.labels.tolist() for e in alone]


def test_the_bos_token_begins_a_text_where_the_tokenizer_adds_it_and_is_not_trained(shared_data):
    from transformers import AutoTokenizer

    for name, has_bos in (("llama2", True), ("qwen3", False), ("gpt2", False), ("gemma3", True)):
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
        assert adds_bos(tokenizer) == has_bos
        text, [span] = framed_text(text_of("Hello there"), tokenizer.special_tokens_map, has_bos)
        expected = tokenizer("Hello there")["input_ids"] + [tokenizer.eos_token_id]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, name
        assert text[span[0] :] == f"Hello there{tokenizer.eos_token}"


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(BadRow, match="no_end_token: the tokenizer has no EOS token"):
        framed_text(text_of("a"), {}, False)
