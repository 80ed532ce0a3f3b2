"""A conversation in a terminal: history, commands, answers that stream; Ctrl-C stops an answer and not the program."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.serving.chat_model import ChatModel
from train.serving.prompt_rows import read_calls

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)

HELP = """\
/reset          forget the conversation; a system message stays
/system TEXT    set the system message, and begin anew; without TEXT: none
/tool TEXT      the result of a tool that the model has called
/save FILE      write the conversation as a JSONL row of `messages`, as data preparation reads it
/quit           end, as does Ctrl-D
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer; what it has said stays in the conversation."""


class ChatSession:
    """One conversation.

    Args:
        overrides: sampling options.
        tools: schemas of what the model may call; `/tool` gives it a result.
        seed: of the first answer; each further one counts on.
        read_line: gives a line for a prompt; EOFError at the end. None: `input`.
        show: prints a piece of text at once.
    """

    def __init__(
        self,
        model: ChatModel,
        overrides: dict[str, Any],
        *,
        seed: int,
        system: str | None,
        enable_thinking: bool | None,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        read_line: Callable[[str], str] | None = None,
        show: Callable[[str], None] = lambda text: print(text, end="", flush=True),
    ) -> None:
        self.model, self.overrides, self.seed = model, overrides, seed
        self.system, self.enable_thinking = system, enable_thinking
        self.tools, self.chat_template_kwargs = tools or [], chat_template_kwargs or {}
        self.read_line, self.show = read_line or input, show
        self.turns: list[dict[str, Any]] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation with its system message."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self.show(f"{self.model.name}: /help lists the commands, Ctrl-D ends\n")
        while True:
            try:
                text = self._read().strip()
            except EOFError:
                self.show("\n")
                return
            except KeyboardInterrupt:  # while a question is typed: begin it anew
                self.show("\n")
                continue
            if text == "/quit":
                return
            try:
                self._take(text)
            except KeyboardInterrupt:  # before an answer has begun
                _end_as_usual()
                self.show("[stopped]\n")

    def _read(self) -> str:
        lines = [self.read_line("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.read_line("… "))
        return "\n".join(lines)

    def _take(self, text: str) -> None:
        """A command or a question; what is wrong with it is said. Then, and where it is stopped before an answer has
        begun, the conversation stays as it was."""
        before = list(self.turns)
        try:
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._ask(text)
        except (ValueError, OSError) as error:
            self.turns = before
            self.show(f"error: {error}\n")
        except KeyboardInterrupt:
            self.turns = before
            raise

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/reset":
            self.turns = []
        elif name == "/system":
            self.system, self.turns = rest or None, []
        elif name == "/tool":
            self._give_result(rest)
        elif name == "/save":
            self._save(rest)
        elif name == "/help":
            self.show(HELP + "\n")
        else:
            raise ValueError(f"there is no command {name}; /help lists them. A question cannot begin with /")

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("/save: expected the name of a file after it")
        with Path(name).open("a", encoding="utf-8") as file:
            tools = {"tools": self.tools} if self.tools else {}
            file.write(json.dumps({"messages": self.messages, **tools}, ensure_ascii=False) + "\n")
        self.show(f"saved to {name}\n")

    def _give_result(self, text: str) -> None:
        """The model answers once each of its calls has a result."""
        since = list(itertools.takewhile(lambda turn: turn["role"] != "assistant", reversed(self.turns)))
        last = self.turns[-1 - len(since)] if len(since) < len(self.turns) else {}
        waiting = len(last.get("tool_calls", [])) - len(since)
        if not text or waiting < 1:
            raise ValueError("/tool: expected a result after it, once the model has called a tool (<tool_call>{...})")
        self.turns.append({"role": "tool", "content": text})
        if waiting > 1:
            self.show(f"{waiting - 1} more of its calls wait for a result\n")
        else:
            self._answer()

    def _ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})
        self._answer()

    def _answer(self) -> None:
        more = (self.tools, self.enable_thinking, self.chat_template_kwargs)
        pieces: list[str] = []

        def give(piece: str) -> None:
            pieces.append(piece)
            self.show(piece)

        try:
            ids = self.model.prompt_ids(self.messages, *more)
            self.model.answer(ids, self.overrides, seed=self.seed, on_text=give)
        except KeyboardInterrupt:
            if not pieces:
                raise
            _end_as_usual()
            self.show(" [stopped]")
        self.seed += 1
        self.show("\n")
        self.turns.append(
            read_turn("".join(pieces)) if self.tools else {"role": "assistant", "content": "".join(pieces)}
        )


def _end_as_usual() -> None:
    """After a Ctrl-C that was caught. One that comes while a text is run by `exec` or `eval` (as modules with
    dataclasses do, and libraries import many with the first answer) is remembered by CPython, which at its end lets
    SIGINT kill the process; the next text that is run makes it forget that."""
    eval("None")


def read_turn(text: str) -> dict[str, Any]:
    """An answer with its tool calls as calls, where they have the form of Hermes and Qwen: JSON in `<tool_call>`.

    As text they would come back to the model as text, and not as the control tokens that they are in its template.
    """
    turn = {"role": "assistant", "content": text}
    found = _CALL.findall(text)
    try:
        calls = [call for body in found for call in read_calls(body, "a tool call")]
    except ValueError:  # no call after all, or one that was cut off
        return turn
    return {**turn, "content": _CALL.sub("", text).strip(), "tool_calls": calls} if calls else turn


def prepare_terminal() -> None:
    """Arrow keys and history for `input`, where it reads from a terminal."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
