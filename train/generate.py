"""Entry: stream answers of an exported model to prompts, next to those of its base model.

    python -m train.generate --model DIR --prompt "..." [--prompt "..."] [--repeat 10] [--base_model DIR]
    python -m train.generate --model DIR --chat

Sampling options have the names of transformers; what is not given is the model's own (generation_config.json).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.program_name import refusal, usage_name
from train.serving.chat_model import Answer, check_folder
from train.serving.prompt_rows import Chat, ask, check_chat, read_file
from train.serving.variation import variation

if TYPE_CHECKING:
    from train.serving.chat_model import ChatModel


def main(arguments: list[str] | None = None) -> None:
    """Command line; one error line and exit code 2 where something is wrong."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # whatever the locale: a cluster's is often C
    options = _parse(arguments)
    try:
        check_folder(options.model)
        if options.chat:
            talk(options)
            return
        chats = read_chats(options.prompt, options.prompts, options.system)
        models = load_models(options.model, options.base_model)
        with _writer(options.output) as write:
            answer_all(models, chats, options, write)
    except ValueError as error:
        raise refusal("train.generate", error) from None


def talk(options: argparse.Namespace) -> None:
    """A conversation in the terminal."""
    from train.serving.chat_model import load
    from train.serving.chat_session import ChatSession, prepare_terminal

    prepare_terminal()
    model, how = load(options.model), {"system": options.system, "enable_thinking": options.enable_thinking}
    ChatSession(model, _overrides(options), seed=options.seed, **how).run()


def read_chats(prompts: list[str], file: str | None, system: str | None) -> list[Chat]:
    """All chats to answer, those of the command line first.

    Args:
        prompts: user messages; "-" stands for all of standard input.
        file: JSONL rows with `prompt` or `messages`, and `tools`; or, under any other name, one prompt per line.
        system: a system message for the chats that have none.

    Raises:
        ValueError: nothing to ask, or a row that is no chat; names file and line.
    """
    chats = [ask(sys.stdin.read().strip() if p == "-" else p) for p in prompts]
    if file:
        chats += read_file(Path(file), "--prompts")
    for chat in chats:
        if system and chat.messages[0]["role"] != "system":
            chat.messages.insert(0, {"role": "system", "content": system})
        check_chat(chat)
    return chats


def load_models(tuned_path: str, base_path: str | None) -> list[ChatModel]:
    """The base model, if asked for, then the tuned one."""
    from train.serving.chat_model import borrow_template, load

    tuned = load(tuned_path)
    if not base_path:
        return [tuned]
    base = load(base_path)
    if borrow_template(base, tuned):
        print(f"{base_path} has no chat template: asked through that of {tuned_path}", file=sys.stderr)
    return [base, tuned]


def answer_all(
    models: list[ChatModel],
    chats: list[Chat],
    options: argparse.Namespace,
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Print each chat's answers, model by model and `repeat` times; answer number i uses seed + i."""
    overrides = _overrides(options)
    only_one = len(models) * len(chats) * options.repeat == 1  # then nothing but the answer is printed
    for number, chat in enumerate(chats):
        if not only_one:
            print(f"[{number + 1}/{len(chats)}] {chat.question}")
        for model in models:
            ids = model.prompt_ids(chat.messages, chat.tools, options.enable_thinking)
            if options.repeat > 1 and not model.generation_config(overrides, len(ids)).do_sample:
                print(f"{model.name} does not sample: all answers will be the same", file=sys.stderr)
            answers = []
            for repeat in range(options.repeat):
                if not only_one:
                    print(_heading(model, models, repeat, options.repeat), end="", flush=True)
                seed = options.seed + repeat
                answer = model.answer(ids, overrides, seed=seed, on_text=lambda text: print(text, end="", flush=True))
                print(flush=True)
                write(_row(model, chat, answer, repeat, seed, overrides))
                answers.append(answer.text)
            if options.repeat > 1:
                print(variation(answers))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=usage_name("train.generate"), description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a folder made by train.export, or an id on the hub")
    add("--base_model", metavar="DIR", help="answer with this model too, before the tuned one")
    add("--prompt", action="append", default=[], help='a question; may be given again; "-" reads standard input')
    add("--prompts", metavar="FILE", help="one question per line, or .jsonl rows: `prompt` or `messages`, `tools`")
    add("--chat", action="store_true", help="talk with the model in the terminal; /help lists its commands")
    add("--system", help="system message for the chats that have none of their own")
    add("--enable_thinking", type=_boolean, metavar="true|false", help="ask the model to think first, or not to")
    add("--repeat", type=_positive, default=1, metavar="N", help="ask the same question N times")
    add("--seed", type=int, default=42, help="the i-th repeat uses seed + i (default: %(default)s)")
    add("--output", metavar="FILE.jsonl", help="also write the answers there; replaced when all are done")
    group = parser.add_argument_group("generation (the model's own value if not given)")
    group.add_argument("--max_new_tokens", type=_positive)
    group.add_argument("--do_sample", type=_boolean, nargs="?", const=True, metavar="true|false")
    group.add_argument("--temperature", type=_above_zero)
    group.add_argument("--top_p", type=_share)
    group.add_argument("--top_k", type=_count, help="0: no limit")
    group.add_argument("--repetition_penalty", type=_above_zero)
    group.add_argument("--stop", action="append", dest="stop_strings", metavar="TEXT", help="end an answer after it")
    options = parser.parse_args(arguments)
    if not (options.prompt or options.prompts or options.chat):
        parser.error("nothing to ask: give --prompt or --prompts, or --chat")
    others = [name for name in ("prompt", "prompts", "base_model", "output") if getattr(options, name)]
    if options.chat and (others or options.repeat > 1):
        parser.error(f"--chat asks one model, one question after the other: leave out --{(others or ['repeat'])[0]}")
    return options


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "stop_strings")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _heading(model: ChatModel, models: list[ChatModel], repeat: int, repeats: int) -> str:
    words = []
    if len(models) > 1:
        words.append("base" if model is models[0] else "tuned")
    if repeats > 1:
        words.append(str(repeat + 1))
    return " ".join(words) + "> "


def _row(
    model: ChatModel, chat: Chat, answer: Answer, repeat: int, seed: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model": model.name,
        "messages": chat.messages,
        **({"tools": chat.tools} if chat.tools else {}),
        "answer": answer.text,
        "repeat": repeat,
        "seed": seed,
        "options": overrides,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "ended": answer.ended,
    }


@contextmanager
def _writer(path: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, found {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0, found {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0 (no sampling: --do_sample false), found {text!r}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, found {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


if __name__ == "__main__":
    main()
