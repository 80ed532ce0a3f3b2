"""A conversation in a terminal: history, commands, answers that stream; Ctrl-C stops an answer and not the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.serving.chat_model import ChatModel

HELP = """\
/reset          forget the conversation; a system message stays
/system TEXT    set the system message, and begin anew; without TEXT: none
/save FILE      write the conversation as a JSONL row of `messages`, as --prompts reads it
/quit           end, as does Ctrl-D
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer; what it has said stays in the conversation."""


class ChatSession:
    """One conversation.

    Args:
        overrides: sampling options.
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
        read_line: Callable[[str], str] | None = None,
        show: Callable[[str], None] = lambda text: print(text, end="", flush=True),
    ) -> None:
        self.model, self.overrides, self.seed = model, overrides, seed
        self.system, self.enable_thinking = system, enable_thinking
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
            if text:
                self._take(text)

    def _read(self) -> str:
        lines = [self.read_line("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.read_line("… "))
        return "\n".join(lines)

    def _take(self, text: str) -> None:
        """A command or a question; what is wrong with it is said, and the conversation stays as it was."""
        before = list(self.turns)
        try:
            if text.startswith("/"):
                self._command(text)
            else:
                self._ask(text)
        except (ValueError, OSError) as error:
            self.turns = before
            self.show(f"error: {error}\n")

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/reset":
            self.turns = []
        elif name == "/system":
            self.system, self.turns = rest or None, []
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
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        self.show(f"saved to {name}\n")

    def _ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})
        ids = self.model.prompt_ids(self.messages, None, self.enable_thinking)
        pieces: list[str] = []

        def give(piece: str) -> None:
            pieces.append(piece)
            self.show(piece)

        try:
            self.model.answer(ids, self.overrides, seed=self.seed, on_text=give)
        except KeyboardInterrupt:
            self.show(" [stopped]")
        self.seed += 1
        self.show("\n")
        self.turns.append({"role": "assistant", "content": "".join(pieces)})


def prepare_terminal() -> None:
    """Arrow keys and history for `input`, where it reads from a terminal."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
