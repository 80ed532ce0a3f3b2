"""A conversation in a terminal, with a model that answers from a script."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from train.serving.chat_model import Answer
from train.serving.chat_session import ChatSession, read_turn
from train.serving.variation import variation


class Scripted:
    """Answers with the number of messages it was asked with; raises what it is told to, after a piece."""

    name = "scripted"

    def __init__(self, *says):
        self.asked, self.seeds, self.interrupt, self.says, self.told = [], [], False, list(says), []

    def prompt_ids(self, messages, tools, enable_thinking, chat_template_kwargs):
        self.told.append((tools, chat_template_kwargs))
        if messages[-1]["content"] == "refuse":
            raise ValueError("the chat template refuses it")
        if messages[-1]["content"] == "stop":
            raise KeyboardInterrupt
        self.asked.append((json.loads(json.dumps(messages)), enable_thinking))
        return [1]

    def answer(self, ids, overrides, *, seed, on_text):
        self.seeds.append(seed)
        on_text(self.says.pop(0) if self.says else f"답 {len(self.asked)}")
        if self.interrupt:
            raise KeyboardInterrupt
        on_text(".")
        return Answer("", 1, 1, True)


def talk(model, *lines, **how):
    """What is shown, and the session."""
    shown, script = [], iter(lines)

    def read(prompt):
        line = next(script, EOFError)
        if isinstance(line, type):
            raise line
        return line

    how = {"seed": 5, "system": None, "enable_thinking": None, **how}
    session = ChatSession(model, {}, read_line=read, show=shown.append, **how)
    session.run()
    return "".join(shown), session


def test_the_history_goes_along_and_seeds_count_on():
    model = Scripted()
    shown, session = talk(model, "하나", "", "둘", system="be brief", enable_thinking=False)
    assert "답 1.\n" in shown and "답 2.\n" in shown and model.seeds == [5, 6]
    assert [message["content"] for message in model.asked[1][0]] == ["be brief", "하나", "답 1.", "둘"]
    assert model.asked[0][1] is False and len(session.turns) == 4


def test_commands(tmp_path):
    model, file = Scripted(), tmp_path / "대화.jsonl"
    first = ("/system 짧게", "하나", f"/save {file}", "/reset", "둘", "/system", "셋")
    shown, _ = talk(model, *first, "/help", "/nope", "/save", "/quit", "넷")
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == ["짧게", "하나", "답 1."]
    contents = [[message["content"] for message in messages] for messages, _ in model.asked]
    assert contents == [["짧게", "하나"], ["짧게", "둘"], ["셋"]]  # and what comes after /quit is not asked
    assert (
        "there is no command /nope" in shown
        and "/save: expected the name of a file" in shown
        and "Ctrl-C stops" in shown
    )


def test_ctrl_c_stops_the_answer_alone_and_what_it_said_stays():
    model = Scripted()
    model.interrupt = True
    shown, session = talk(model, "하나", KeyboardInterrupt, "/quit")
    assert "답 1 [stopped]\n" in shown
    assert session.turns == [{"role": "user", "content": "하나"}, {"role": "assistant", "content": "답 1"}]


def test_ctrl_c_before_the_answer_forgets_the_question():
    model = Scripted()
    shown, session = talk(model, "하나", "stop", "둘", "/quit")
    assert "[stopped]\n" in shown and [turn["content"] for turn in session.turns] == ["하나", "답 1.", "둘", "답 2."]


ENDS_BY_QUIT = """
from train.serving.chat_session import ChatSession

class Model:
    name = "model"
    def prompt_ids(self, *_):
        exec("import os, signal; os.kill(os.getpid(), signal.SIGINT); [None for _ in range(9)]")

lines = iter(["question", "/quit"])
ChatSession(Model(), {}, seed=1, system=None, enable_thinking=None, read_line=lambda _: next(lines)).run()
"""


def test_a_ctrl_c_that_was_caught_does_not_end_the_process_by_a_signal():
    """It comes while a library is imported, which runs texts as code."""
    done = subprocess.run([sys.executable, "-c", ENDS_BY_QUIT], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "[stopped]" in done.stdout


def test_lines_go_on_and_a_refused_question_is_forgotten():
    model = Scripted()
    shown, session = talk(model, "first\\", "second", "refuse")
    assert model.asked[0][0][0]["content"] == "first\nsecond"
    assert "error: the chat template refuses it" in shown and len(session.turns) == 2


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["a b c"] * 3, "1 of 3 answers differ; two of them are alike by 1.00"),
        (["a b", "c d"], "2 of 2 answers differ; two of them are alike by 0.00"),
        (["a b c d", "a b x y"], "2 of 2 answers differ; two of them are alike by 0.50"),
    ],
)
def test_variation(answers, said):
    assert variation(answers) == said
    assert variation([*answers * 40]).startswith(said[0])  # of many pairs, some


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALLS = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "서울"}}\n</tool_call>'


def test_tools_are_offered_and_their_results_go_back_as_results(tmp_path):
    model, file = Scripted(CALLS), tmp_path / "c.jsonl"
    _, session = talk(model, "날씨?", "/tool 맑음", f"/save {file}", tools=TOOLS, chat_template_kwargs={"a": 1})
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "서울"}}}
    asked, _ = model.asked[1]
    assert asked[1] == {"role": "assistant", "content": "I look.\n.", "tool_calls": [call]}
    assert asked[2] == {"role": "tool", "content": "맑음"} and session.turns[-1]["content"] == "답 2."
    assert model.told == [(TOOLS, {"a": 1})] * 2
    assert json.loads(file.read_text())["tools"] == TOOLS


def test_each_call_needs_a_result_and_none_is_taken_without_a_call():
    model = Scripted(CALLS * 2)
    shown, session = talk(model, "/tool x", "a", "/tool 1", "/tool 2", "/tool 3", "/tool", tools=TOOLS)
    assert shown.count("error: /tool: expected a result after it") == 3
    assert "1 more of its calls wait for a result" in shown
    assert [turn["role"] for turn in session.turns] == ["user", "assistant", "tool", "tool", "assistant"]


@pytest.mark.parametrize("text", ["plain", "<tool_call>\nno JSON\n</tool_call>", '<tool_call>{"name": "f"'])
def test_what_is_no_call_stays_text(text):
    assert read_turn(text) == {"role": "assistant", "content": text}
