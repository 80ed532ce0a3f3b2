"""Calls, tools and messages that a template prints in part: found, whatever its format; and none where all is there."""

from __future__ import annotations

import json

import pytest

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.printed_values import ToolTexts, first_missing_call, printed_as_python
from data_prep.rendering.renderer import Renderer

ARGUMENTS = {"word": 'é "b"\n', "n": 12345678901234567890123, "f": 1.0, "no": None, "yes": True, "in": {"a": ["x", 1]}}
CALLS = (ToolCall("look_up", ARGUMENTS), ToolCall("look_up", {"word": "b"}))


def xml(call: ToolCall) -> str:
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in call.arguments.items()}
    return f"<f={call.name}>" + "".join(f"<p={k}>\n{v}\n</p>" for k, v in values.items())


FORMATS = {
    "json": lambda call: json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False),
    "ascii, sorted, indented": lambda call: f"{call.name} {json.dumps(call.arguments, sort_keys=True, indent=4)}",
    "name last": lambda call: json.dumps({"arguments": call.arguments, "name": call.name}),
    "xml": xml,
    "python": lambda call: f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})",
}


@pytest.mark.parametrize("name", FORMATS)
def test_all_calls_are_found_in_any_format(name):
    text = "Let me see.\n" + "\n".join(map(FORMATS[name], CALLS))
    assert first_missing_call(CALLS, text, 12) is None
    assert printed_as_python(CALLS, text, "") is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("printed", "missing"),
    [
        (CALLS[:1], 1),
        (CALLS[1:], 0),
        ((), 0),
        (CALLS[::-1], 1),
        ((ToolCall("look_up", {**ARGUMENTS, "f": 1.05}), CALLS[1]), 0),
        ((ToolCall("look_up", {k: v for k, v in ARGUMENTS.items() if k != "in"}), CALLS[1]), 0),
    ],
)
def test_a_call_that_is_left_out_changed_or_elsewhere_is_found(name, printed, missing):
    text = "look_up " + "\n".join(map(FORMATS[name], printed))
    assert first_missing_call(CALLS, text, 8) == missing


def test_an_object_printed_as_python_is_found_unless_the_row_says_so_itself():
    inner = f"<p=in>{ARGUMENTS['in']}</p>"
    assert printed_as_python(CALLS, f"look_up {inner}", "") == ARGUMENTS["in"]
    assert printed_as_python(CALLS, f"I take {inner}. {FORMATS['json'](CALLS[0])}", f"I take {inner}.") is None


PLACE = {"type": "object", "description": "a place", "properties": {"city": {"type": "string", "description": "name"}}}
SCHEMA = {"type": "object", "properties": {"where": PLACE, "unit": {"enum": ["celsius", "kelvin"]}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Look it up", "parameters": SCHEMA}}


def test_tools_are_found_in_json_and_in_other_words():
    tools = (TOOL, {"type": "function", "function": {"name": "time", "parameters": SCHEMA}})
    for indent in (None, 4):
        texts = ToolTexts(tools, "\n".join(json.dumps(tool, indent=indent) for tool in tools))
        assert (texts.missing, texts.left_out) == ([], [])
    words = "// Look it up\nweather(where: {city}, // a place\n unit) time(where // a place\n unit)"
    texts = ToolTexts(tools, words)
    assert texts.missing == [] and sorted(texts.left_out) == ["celsius", "city", "kelvin", "name"]
    assert ToolTexts(tools, json.dumps(tools[0])).missing == ["time", "where", "a place", "unit"]
    assert ToolTexts(tools[:1], "weather where a place unit").missing == ["Look it up"]


CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}{%- generation %}"
    "CONTENT{%- for c in CALLS %}{{- '<call>' + c.function.name + ' ' + c.function.arguments | tojson }}{%- endfor %}"
    "{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}{%- else %}TURN{%- endif %}{%- endfor %}TOOLS"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
WHOLE = {
    "CONTENT": "{{- m.content }}",
    "CALLS": "m.tool_calls or []",
    "TURN": "{{- m.content + '<|im_end|>\\n' }}",
    "TOOLS": "{{- tools | tojson if tools }}",
}
FAULTS = {
    "none": {},
    "one call": {"CALLS": "(m.tool_calls or [])[:1]"},
    "no content next to calls": {"CONTENT": "{{- m.content if not m.tool_calls }}"},
    "one result": {
        "TURN": "{%- if not (m.role == 'tool' and loop.previtem.role == 'tool') %}"
        "{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    },
    "names of tools": {"TOOLS": "{%- for t in tools or [] %}{{- t.function.name }}{%- endfor %}"},
    "one tool": {"TOOLS": "{{- tools[:1] | tojson if tools }}"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_template_that_leaves_a_part_out_drops_the_row_also_where_it_says_little(tiny_tokenizer, fault):
    """The content is "a", which every call holds; both calls and both results are the same."""
    text = CHATML
    for key, jinja in {**WHOLE, **FAULTS[fault]}.items():
        text = text.replace(key, jinja)
    renderer = Renderer(tiny_tokenizer, ChatTemplate(text, "mine", has_marks=True))
    call = ToolCall("weather", {"city": "a"})
    messages = (
        Message("user", "q"),
        Message("assistant", "a", tool_calls=(call, call)),
        Message("tool", "1"),
        Message("tool", "1"),
        Message("assistant", "done"),
    )
    tools = (TOOL, {"type": "function", "function": {"name": "w"}})
    (result,) = renderer.render([Conversation(messages, "s", 0, tools)])
    found = result.reason if isinstance(result, BadRow) else "kept"
    assert found == ("kept" if fault == "none" else "left_out_by_template")
