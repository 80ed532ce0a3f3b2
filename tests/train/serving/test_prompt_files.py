"""Prompts from lines, JSONL, JSON and standard input; what is no prompt is refused with its place."""

from __future__ import annotations

import io
import json
import sys

import pytest

from train import generate


def test_prompts_from_files(tmp_path, monkeypatch):
    text = tmp_path / "prompts.txt"
    text.write_text("\ufeff첫 번째\r\n\n two \n", encoding="utf-8")
    rows = tmp_path / "prompts.jsonl"
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
    inside = "a\u2028line"
    rows.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ({"prompt": inside}, {"messages": chat})))
    user, system = (lambda t: {"role": "user", "content": t}), {"role": "system", "content": "S"}

    def read(*arguments) -> list[list[dict]]:
        return [chat.messages for chat in generate.read_chats(*arguments)]

    assert read(["x"], str(text), None) == [[user("x")], [user("첫 번째")], [user("two")]]
    assert read([], str(rows), "S") == [[system, user(inside)], chat]
    monkeypatch.setattr(sys, "stdin", io.StringIO(" from\nstdin \n"))
    assert read(["-"], None, "S") == [[system, user("from\nstdin")]]


JSON_FILES = {
    "questions": (["하나", "two"], [["하나"], ["two"]]),
    "one chat": ([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], [["s", "q"]]),
    "chats": ([[{"from": "human", "value": "q"}], "r"], [["q"], ["r"]]),
    "rows": ([{"prompt": "q"}, {"messages": [{"role": "user", "content": "r"}]}], [["q"], ["r"]]),
    "a row": ({"prompt": "q"}, [["q"]]),
}


@pytest.mark.parametrize("form", JSON_FILES)
def test_json_files_of_prompts(form, tmp_path):
    content, contents = JSON_FILES[form]
    (tmp_path / "p.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    chats = generate.read_chats([], str(tmp_path / "p.json"), None)
    assert [[message["content"] for message in chat.messages] for chat in chats] == contents


def test_tools_of_a_file_go_to_chats_that_have_none(tmp_path):
    schema, own = {"name": "f", "parameters": {}}, {"type": "function", "function": {"name": "g"}}
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "q", "tools": [own]}))
    (tmp_path / "t.json").write_text(json.dumps([schema]))
    tools = generate.read_tools_file(tmp_path / "t.json", "--tools")
    first, second = generate.read_chats(["x"], str(tmp_path / "p.jsonl"), None, tools)
    assert first.tools == [{"type": "function", "function": schema}] and second.tools == [own]
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(ValueError, match=r"--tools .*expected a list of JSON schemas, found none"):
        generate.read_tools_file(tmp_path / "t.json", "--tools")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"p.jsonl:2: expected a JSON object"),
        ("p.jsonl", b'{"question": "a"}', r'p.jsonl:1: expected "prompt"'),
        ("p.jsonl", b'["a"]', r"p.jsonl:1: expected an object with prompt or messages, found list"),
        ("p.json", b'["a", 1]', r"p.json, item 1: expected an object with prompt or messages, found int"),
        ("p.json", b'["a", ', r"p.json: expected a JSON list of prompts"),
        ("p.json", b"[]", r"expected at least one prompt, found none"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": 1}', r"p.json:2: expected .prompt. .text."),
        ("p.jsonl", b'{"messages": [{"role": "wizard", "content": "a"}]}', r"p.jsonl:1, message 0: expected a role"),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": "a"}], "tools": "{"}', r"p.jsonl:1: expected JSON"),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}', r"ends with the user's turn"),
        ("p.jsonl", b'{"prompt": " "}', r"an empty user message"),
        ("p.txt", b"\n \n", r"expected at least one prompt, found none"),
        ("p.txt", b"\xb0\xa1\xb3\xaa", r"expected a UTF-8 text file"),
    ],
)
def test_prompt_files_that_cannot_be_used_are_refused_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        generate.read_chats([], str(tmp_path / name), None)
