"""Tokenizers with a template `tool_use` next to the default one: rows are rendered as a server prompts."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.named_templates import PROBE_TOOL, by_tools
from data_prep.rendering.prompted_turns import fit_as_prompted
from data_prep.tokenization.saved_tokenizer import save_exactly
from data_prep.tokenization.tokenizer import load_tokenizer
from tests.support.published_templates import renderer_of, tokenizer_for
from tests.support.trained_parts import trained_parts

DEFAULT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>\n{{ '' }}{% endif %}\n"
)
# Fails without tools, has another header, and takes arguments as JSON text (made after Hermes' and Command R+'s).
TOOL_USE = (
    "{%- macro one(tool) %}\n{{- tool.name + tool.description + (tool.parameters | tojson) }}\n{%- endmacro %}\n\n"
    "{{- bos_token }}{{ 'T' * (tools | length) }}{% for tool in tools %}{{ one(tool.function) }}{% endfor %}\n"
    "{%- for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }}:{{ call.function.arguments + '' }}{% endfor %}{{ m.content }}<|eot|>"
    "{%- else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}\n"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMED = {"default": DEFAULT, "rag": "{{ documents[0] }}", "tool_use": TOOL_USE}
ASKS = (Message("system", "Be brief."), Message("user", "Hi?"))
CALLS = (*ASKS, Message("assistant", "", tool_calls=(ToolCall("look_up", {"word": "안녕"}),)), Message("tool", "found"))
TALK, CALLING = (*ASKS, Message("assistant", "Yes.")), (*CALLS, Message("assistant", "No."))


def row(messages: tuple[Message, ...], *tools) -> Conversation:
    return Conversation(messages, "s", 0, tools=tools)


def served(tokenizer, messages: tuple[Message, ...], tools) -> str:
    """What transformers prompts with the tokenizer as published."""
    dicts = [m.as_dict() for m in messages]
    for call in (call["function"] for m in dicts for call in m.get("tool_calls", ())):
        call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return tokenizer.apply_chat_template(dicts, tools=tools, tokenize=False, add_generation_prompt=True)


def test_each_row_continues_the_prompt_that_transformers_makes_with_its_tools():
    rows = [row(TALK), row(CALLING, PROBE_TOOL), row(TALK, PROBE_TOOL), row(TALK)]
    renderer = renderer_of(NAMED)
    published = copy.deepcopy(renderer.tokenizer)
    found = [trained_parts(published, result) for result in renderer.render(rows)]
    plain = (served(published, ASKS, None), "Yes.<|end|>")
    assert found[0] == found[3] == [plain]
    assert found[2] == [(served(published, ASKS, [PROBE_TOOL]), "Yes.<|eot|>")]
    assert found[1] == [
        (served(published, ASKS, [PROBE_TOOL]), '<tool_call>look_up:{"word": "안녕"}<|eot|>'),
        (served(published, CALLS, [PROBE_TOOL]), "No.<|eot|>"),
    ]


@pytest.mark.parametrize(
    "edge", ["", "\n", "\n\n", "  ", " \n ", "{% if true %}\n{% endif %}\n", "{#- c -#}\n", "x\n  "]
)
def test_the_one_template_prints_what_the_two_print(edge):
    named = {"default": f"{edge}d{{{{ messages | length }}}}{edge}", "tool_use": f"{edge}t{edge}"}
    tokenizer = copy.copy(tokenizer_for(DEFAULT))
    texts = []
    for template in (named, by_tools(named)):
        tokenizer.chat_template = template
        texts.append([served(tokenizer, ASKS, tools) for tools in (None, [], [PROBE_TOOL])])
    assert texts[0] == texts[1] and "t" in texts[0][1]


def test_marks_of_one_template_are_not_those_of_the_other():
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    renderer = renderer_of({**NAMED, "default": marked})
    assert renderer.template.has_marks and not renderer.template.tool_use.has_marks
    talk, calling = renderer.render([row(TALK), row(CALLING, PROBE_TOOL)])
    assert [said for _, said in trained_parts(renderer.tokenizer, talk)] == ["Yes.<|end|>"]
    assert [said for _, said in trained_parts(renderer.tokenizer, calling)][1] == "No.<|eot|>"


def test_a_tool_use_that_cannot_be_trained_on_costs_the_rows_with_tools_alone():
    """Command R+'s prints an instruction after any last turn."""
    renderer = renderer_of({**NAMED, "tool_use": TOOL_USE + "{{ '<|system|>Call.' }}"})
    talk, calling = renderer.render([row(TALK), row(CALLING, PROBE_TOOL)])
    assert not isinstance(talk, BadRow)
    assert isinstance(calling, BadRow) and calling.reason == "tool_use_refused"
    assert "Name the template of a tokenizer that can be trained on" in calling.detail


def test_calls_without_tools_are_told_that_tools_are_missing():
    (refused,) = renderer_of(NAMED).render([row(CALLING)])
    assert isinstance(refused, BadRow) and refused.reason == "tools_not_in_template"
    assert "Give the row its `tools`: then 'tool_use' renders it" in refused.detail


def test_named_templates_without_a_default_are_refused_by_name():
    tokenizer = copy.copy(tokenizer_for(DEFAULT))
    tokenizer.chat_template = {"rag": "", "tool_use": TOOL_USE}
    with pytest.raises(ValueError, match=r"\['rag', 'tool_use'\] and none named 'default'"):
        resolve_chat_template("tokenizer", tokenizer)


def test_a_worker_renders_the_same():
    renderer, rows = renderer_of(NAMED), [row(CALLING, PROBE_TOOL), row(TALK)]
    renderer.use_fast_encoder(rows, encoders=())
    there = pickle.loads(pickle.dumps(renderer))
    for one, two in zip(renderer.render(rows), there.render(rows), strict=True):
        assert one.input_ids.tolist() == two.input_ids.tolist() and one.labels.tolist() == two.labels.tolist()


def test_turns_that_differ_later_are_split_as_with_one_template():
    """Hermes' prints a line break after the result of a call only where a turn follows."""
    differs = TOOL_USE.replace(
        "<|{{ m.role }}|>{{ m.content }}", "<|{{ m.role }}|>{{ m.content }}{{ '\n' if loop.last }}"
    )
    renderer, whole = renderer_of({**NAMED, "tool_use": differs}), row(CALLING, PROBE_TOOL)
    (bad,) = renderer.render([whole])
    assert isinstance(bad, BadRow) and bad.reason == "template_not_prefix"
    split = fit_as_prompted(whole, bad, 999, "drop", renderer)
    assert [said for _, said in trained_parts(renderer.tokenizer, *split.fitted.examples)][1] == "No.<|eot|>"


@pytest.mark.parametrize("is_list", [True, False])
def test_the_tokenizer_of_the_shards_prompts_as_the_published_one(tmp_path, is_list):
    """Also where the templates are a list in tokenizer_config.json, as older versions write them."""
    tokenizer = copy.copy(tokenizer_for(DEFAULT + TOOL_USE))
    tokenizer.chat_template = NAMED
    tokenizer.save_pretrained(tmp_path / "own", save_jinja_files=not is_list)
    config = json.loads((tmp_path / "own" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert isinstance(config.get("chat_template"), list) == is_list
    published, ours = (load_tokenizer(str(tmp_path / "own")) for _ in range(2))
    ours.chat_template = resolve_chat_template("tokenizer", ours).text
    assert save_exactly(ours, tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert isinstance(saved.chat_template, str)
    for messages, tools in ((TALK, None), (CALLS, [PROBE_TOOL])):
        assert served(saved, messages, tools) == served(published, messages, tools)
