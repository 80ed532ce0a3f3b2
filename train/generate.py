"""Entry: answers of a model, or of several next to each other: streamed, from files, or in a conversation.

    packhaul generate --model DIR --prompt "..." [--prompt "..."] [--repeat 10] [--base_model DIR]
    packhaul generate --model DIR --prompts FILE [--batch_size 8] [--output FILE.jsonl]
    packhaul generate --compare DIR DIR ... --prompt "..."
    packhaul generate --model DIR --chat

DIR is an export, a run, a checkpoint or an adapter. Of several models one at a time is in memory, and the answers are
printed when all have answered. Sampling options have the names of transformers; what is not given is the model's own
(generation_config.json).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import refusal, usage_name
from train.run import quiet
from train.serving import generation_flags
from train.serving.chat_model import Answer
from train.serving.compared_models import Asked, answer_in_turn, asked_models
from train.serving.generation_flags import overrides
from train.serving.loaded_models import Loading, check_folder, check_sampling
from train.serving.prompt_files import read_file, read_tools_file
from train.serving.prompt_rows import Chat, ask, check_chat
from train.serving.variation import variation

if TYPE_CHECKING:
    from train.serving.chat_model import ChatModel

Write = Callable[[dict[str, Any]], None]


def main(arguments: list[str] | None = None) -> None:
    """Command line; one error line and exit code 2 where something is wrong."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # whatever the locale: a cluster's is often C
    options = _parse(arguments)
    quiet.set_up()
    try:
        models = asked_models(options.model, options.base_model, options.compare or [])
        check_models(models, options)
        tools = read_tools_file(Path(options.tools), "--tools") if options.tools else []
        if options.chat:
            talk(options, tools)
            return
        chats = read_chats(options.prompt, options.prompts, options.system, tools)
        with _writer(options.output) as write:
            answer_all(models, chats, options, write)
    except ValueError as error:
        raise refusal("train.generate", error) from None


def check_models(models: list[Asked], options: argparse.Namespace) -> None:
    """All that can be told before a model is loaded.

    Raises:
        ValueError: one is not there, or would not do what an option says.
    """
    _loading(options).check()
    for model in models:
        check_folder(model.path, runs=True)
        check_sampling(model.path, overrides(options))


def talk(options: argparse.Namespace, tools: list[dict[str, Any]]) -> None:
    """A conversation in the terminal."""
    from train.serving.chat_session import ChatSession, prepare_terminal
    from train.serving.loaded_models import load

    prepare_terminal()
    how = {"system": options.system, "tools": tools, "chat_template_kwargs": options.chat_template_kwargs}
    model = load(options.model, _loading(options))
    ChatSession(model, overrides(options), seed=options.seed, enable_thinking=options.enable_thinking, **how).run()


def read_chats(
    prompts: list[str], file: str | None, system: str | None, tools: list[dict[str, Any]] | None = None
) -> list[Chat]:
    """All chats to answer, those of the command line first.

    Args:
        prompts: user messages; "-" stands for all of standard input.
        file: as train.serving.prompt_files reads it.
        system: a system message for the chats that have none.
        tools: schemas for the chats that have none.

    Raises:
        ValueError: nothing to ask, or a row that is no chat; names file and line.
    """
    chats = [ask(sys.stdin.read().strip() if p == "-" else p) for p in prompts]
    if file:
        chats += read_file(Path(file), "--prompts")
    for chat in chats:
        chat.tools = chat.tools or tools or []
        if system and chat.messages[0]["role"] != "system":
            chat.messages.insert(0, {"role": "system", "content": system})
        check_chat(chat)
    return chats


def answer_all(models: list[Asked], chats: list[Chat], options: argparse.Namespace, write: Write) -> None:
    """Print and write each chat's answers, model by model and `repeat` times; answer number i uses seed + i."""
    if len(models) == 1:
        _answer_alone(models[0], chats, options, write)
        return
    answers = answer_in_turn(models, _loading(options), lambda model: _answers(model, chats, options))
    for number, chat in enumerate(chats):
        print(f"[{number + 1}/{len(chats)}] {chat.question}")
        for model, of_model in zip(models, answers, strict=True):
            _show(model, chat, of_model[number], options, write)


def _answer_alone(asked: Asked, chats: list[Chat], options: argparse.Namespace, write: Write) -> None:
    """One model's answers: each piece as soon as it is there, or each batch."""
    from train.serving.loaded_models import load

    model, step = load(asked.path, _loading(options)), options.batch_size
    only_one = len(chats) * options.repeat == 1  # then nothing but the answer is printed
    for first in range(0, len(chats), step):
        batch = chats[first : first + step]
        whole = _answers(model, batch, options) if step > 1 else [_streamed(model, batch[0], options)]
        for number, (chat, answers) in enumerate(zip(batch, whole, strict=True), first + 1):
            if not only_one:
                print(f"[{number}/{len(chats)}] {chat.question}")
            _show(asked, chat, answers, options, write, is_headed=not only_one, is_streamed=step == 1)


def _answers(model: ChatModel, chats: list[Chat], options: argparse.Namespace) -> list[list[Answer]]:
    """By chat, and for each by repeat."""
    found: list[list[Answer]] = [[] for _ in chats]
    for first in range(0, len(chats), options.batch_size):
        batch = slice(first, first + options.batch_size)
        prompts = [_prompt_ids(model, chat, options) for chat in chats[batch]]
        for repeat in range(options.repeat):
            answers = model.answer_batch(prompts, overrides(options), seed=options.seed + repeat)
            for of_chat, answer in zip(found[batch], answers, strict=True):
                of_chat.append(answer)
    return found


def _streamed(model: ChatModel, chat: Chat, options: argparse.Namespace) -> Iterator[Answer]:
    """The answers by repeat, each printed piece by piece while it is made."""
    ids = _prompt_ids(model, chat, options)

    def show(text: str) -> None:
        print(text, end="", flush=True)

    for repeat in range(options.repeat):
        yield model.answer(ids, overrides(options), seed=options.seed + repeat, on_text=show)


def _prompt_ids(model: ChatModel, chat: Chat, options: argparse.Namespace) -> list[int]:
    ids = model.prompt_ids(chat.messages, chat.tools, options.enable_thinking, options.chat_template_kwargs)
    if options.repeat > 1 and not model.generation_config(overrides(options), len(ids)).do_sample:
        print(f"{model.name} does not sample: all answers will be the same", file=sys.stderr)
    return ids


def _show(
    asked: Asked,
    chat: Chat,
    answers: Iterable[Answer],
    options: argparse.Namespace,
    write: Write,
    *,
    is_headed: bool = True,
    is_streamed: bool = False,
) -> None:
    """Print and write one model's answers to a chat; streamed ones print themselves when they are taken."""
    coming, texts = iter(answers), []
    for repeat in range(options.repeat):
        if is_headed:
            print(_heading(asked, repeat, options.repeat), end="", flush=True)
        answer = next(coming)
        print("" if is_streamed else answer.text, flush=True)
        write(_row(asked, chat, answer, repeat, options))
        texts.append(answer.text)
    if options.repeat > 1:
        print(variation(texts))


def _heading(asked: Asked, repeat: int, repeats: int) -> str:
    return " ".join([*filter(None, [asked.label]), *([str(repeat + 1)] if repeats > 1 else [])]) + "> "


def _row(asked: Asked, chat: Chat, answer: Answer, repeat: int, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": asked.path,
        "messages": chat.messages,
        **({"tools": chat.tools} if chat.tools else {}),
        "answer": answer.text,
        "repeat": repeat,
        "seed": options.seed + repeat,
        "options": {**overrides(options), **_other_options(options)},
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "ended": answer.ended,
    }


def _other_options(options: argparse.Namespace) -> dict[str, Any]:
    """What else decides an answer, where it is given."""
    names = ("enable_thinking", "chat_template_kwargs", "load_in_4bit")
    found = {name: getattr(options, name) for name in names if getattr(options, name) not in (None, False, {})}
    found |= {"enable_thinking": False} if options.enable_thinking is False else {}
    found |= {"batch_size": options.batch_size} if options.batch_size > 1 else {}
    return found | ({"dtype": options.dtype} if options.dtype != "auto" else {})


def _loading(options: argparse.Namespace) -> Loading:
    return Loading(options.dtype, options.load_in_4bit)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog=usage_name("train.generate"), description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    generation_flags.add_flags(parser)
    options = parser.parse_args(arguments)
    generation_flags.check(parser, options)
    return options


@contextmanager
def _writer(path: str | None) -> Iterator[Write]:
    """Writes rows to a temporary file, which replaces `path` at the end: if this is cut off, the old file stays."""
    if not path:
        yield lambda row: None
        return
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    try:
        file = temporary.open("w", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--output {path} cannot be written: {error}") from None
    with file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
    temporary.replace(path)


if __name__ == "__main__":
    main()
