"""Flags of train.generate: which models, what is asked, how they are loaded and how they answer."""

from __future__ import annotations

import argparse
import json
from typing import Any

from train.config.flag_types import boolean, whole_number

DTYPES = ("auto", "bfloat16", "float16", "float32")
SAMPLING = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "stop_strings")
# Arguments of apply_chat_template that are set here, and no variables of a template.
_NOT_VARIABLES = (
    *("messages", "conversation", "tools", "chat_template", "add_generation_prompt", "tokenize", "padding"),
    *("continue_final_message", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    which = parser.add_argument_group("models").add_argument
    which("--model", metavar="DIR", help="an export, a run, a checkpoint or an adapter, or an id on the hub")
    which("--base_model", metavar="DIR", help="answer with this model too, before the tuned one")
    which("--compare", nargs="+", metavar="DIR", help="instead of --model: all of these answer the same prompts")
    which("--dtype", choices=DTYPES, default="auto", help="of the weights (default: that of the files)")
    which("--load_in_4bit", action="store_true", help="quantise the weights to 4 bits (nf4) with bitsandbytes")
    _add_questions(parser.add_argument_group("questions").add_argument)
    _add_sampling(parser.add_argument_group("generation (the model's own value if not given)").add_argument)


def _add_questions(add: Any) -> None:
    add("--prompt", action="append", default=[], help='a question; may be given again; "-" reads standard input')
    add("--prompts", metavar="FILE", help="one question per line; .jsonl or .json: `prompt` or `messages`, `tools`")
    add("--chat", action="store_true", help="talk with the model in the terminal; /help lists its commands")
    add("--system", help="system message for the chats that have none of their own")
    add("--tools", metavar="FILE.json", help="a list of JSON schemas: tools of the chats that have none of their own")
    add("--enable_thinking", type=boolean, metavar="true|false", help="ask the model to think first, or not to")
    add("--chat_template_kwargs", type=variables, default={}, metavar="JSON", help="other variables of the template")
    add("--repeat", type=whole_number, default=1, metavar="N", help="ask the same question N times")
    add("--seed", type=int, default=42, help="the i-th repeat uses seed + i (default: %(default)s)")
    add("--batch_size", type=whole_number, default=1, metavar="N", help="answer N prompts at once, not streamed")
    add("--output", metavar="FILE.jsonl", help="also write the answers there; replaced when all are done")


def _add_sampling(add: Any) -> None:
    add("--max_new_tokens", type=whole_number)
    add("--do_sample", type=boolean, nargs="?", const=True, metavar="true|false")
    add("--temperature", type=_above_zero)
    add("--top_p", type=_share)
    add("--top_k", type=_count, help="0: no limit")
    add("--repetition_penalty", type=_above_zero)
    add("--stop", action="append", dest="stop_strings", metavar="TEXT", help="end an answer after it")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse flags that do not go together, through the parser."""
    if (options.model is None) == (options.compare is None):
        parser.error("give --model, or --compare with two models or more")
    if options.compare and (len(options.compare) < 2 or len(set(options.compare)) < len(options.compare)):
        parser.error(f"--compare: expected two models or more, each once, found {' '.join(options.compare)}")
    if not (options.prompt or options.prompts or options.chat):
        parser.error("nothing to ask: give --prompt or --prompts, or --chat")
    if options.compare and options.base_model:
        parser.error("--base_model goes with --model: name it as one of --compare")
    if options.enable_thinking is not None and "enable_thinking" in options.chat_template_kwargs:
        parser.error("enable_thinking is given twice: leave it out of --chat_template_kwargs")
    others = [name for name in ("prompt", "prompts", "base_model", "compare", "output") if getattr(options, name)]
    others += [name for name in ("repeat", "batch_size") if getattr(options, name) > 1]
    if options.chat and others:
        parser.error(f"--chat asks one model, one question after the other: leave out --{others[0]}")


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that are given, by transformers' names."""
    return {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}


def variables(text: str) -> dict[str, Any]:
    """Variables of a chat template, as a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text!r}: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text!r}")
    if taken := [name for name in found if name in _NOT_VARIABLES]:
        raise argparse.ArgumentTypeError(f"{taken[0]!r} is no variable of a template: it is set here")
    return found


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
