"""Rows of prompts are read as data preparation reads rows of messages; what is no chat is refused with its place."""

from __future__ import annotations

import json

import pytest

from data_prep.sources import message_lists
from data_prep.sources.message_lists import MessageReader
from data_prep.sources.tool_calls import read_tools
from tests.support.conversions import source_of
from train.serving.prompt_rows import ROLE_ALIASES, Chat, check_chat, read_chat

CALL = {"name": "look_up", "arguments": {"word": "사과"}}
RESULT = {"role": "tool", "content": "1"}
SCHEMA = {"name": "look_up", "parameters": {"type": "object"}}
ASKED = {"role": "user", "content": "q"}
MESSAGES = {
    "plain": [ASKED],
    "share_gpt": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "r"}],
    "as_text": json.dumps([ASKED]),
    "developer": [{"role": "developer", "content": "s"}, ASKED],
    "calls": [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
        {"role": "tool", "content": "1"},
    ],
    "call_as_text": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "arguments": json.dumps(CALL["arguments"])}]},
        {"role": "observation", "content": "1"},
    ],
    "function_call": [
        ASKED,
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "1"},
    ],
    "old_function_call": [ASKED, {"role": "assistant", "function_call": CALL}, {"role": "function", "content": "1"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "text": "r"}, {"type": "tool_call", "text": json.dumps(CALL)}],
        },
        {"role": "tool", "content": "1"},
    ],
    "reasoning": [ASKED, {"role": "assistant", "content": "a", "reasoning": "r"}, ASKED],
}


@pytest.mark.parametrize("form", MESSAGES)
def test_messages_are_what_data_preparation_makes_of_them(form):
    reader = MessageReader(source_of("messages"), lambda name: None)
    expected = [message.as_dict() for message in reader.read(MESSAGES[form], "row")]
    key = "conversations" if form == "share_gpt" else "messages"
    assert read_chat({key: MESSAGES[form]}, "row").messages == expected


@pytest.mark.parametrize(
    "tools", [[SCHEMA], [{"type": "function", "function": SCHEMA}], json.dumps([SCHEMA]), "", None]
)
def test_tools_are_what_data_preparation_makes_of_them(tools):
    chat = read_chat({"prompt": "q", "tools": tools}, "row")
    assert chat.tools == list(read_tools(tools, "row"))
    assert chat.messages == [ASKED] and chat.question == "q"


def test_the_names_of_roles_are_those_of_data_preparation():
    assert ROLE_ALIASES == message_lists.ROLE_ALIASES


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q"}, r"f:1: expected \"prompt\" \(text\) or \"messages\".*question"),
        ({"messages": []}, "f:1: expected \"prompt\""),
        ({"messages": ["q"]}, "f:1, message 0: expected an object with role and content, found str"),
        ({"messages": [{"role": "wizard", "content": "q"}]}, "message 0: expected a role, one of system.*'wizard'"),
        ({"messages": [{"role": "user", "content": 1}]}, "message 0: expected content as text"),
        ({"messages": [ASKED, {"role": "assistant", "content": "a"}]}, "ends with the user's turn or a tool's result"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": 1}]}]}, "expected a call with name and arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "arguments": "["}]}]}, "expected JSON, found"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "arguments": []}]}]}, "as a JSON object"),
        ({"prompt": "q", "tools": {"name": "f"}}, "expected tools as a list of JSON schemas"),
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused_with_its_place(row, words):
    with pytest.raises(ValueError, match=words):
        read_chat(row, "f:1")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "tool", "content": " "}], "an empty tool message"),
        ([ASKED, {"role": "system", "content": "s"}, ASKED], "message 1 is a system message"),
        ([{**ASKED, "tool_calls": [{"function": CALL}]}], r"message 0 \(user\) calls a tool"),
        ([{"role": "user", "content": "\ud800"}], "the user message is not Unicode text"),
    ],
)
def test_what_no_template_renders_is_refused(messages, words):
    with pytest.raises(ValueError, match=words):
        check_chat(Chat(messages))
