"""The chat template that renders the data: a built-in one, the tokenizer's own, another tokenizer's, or a Jinja file.

The template decides what the model says by `{% generation %}` marks (the convention of transformers). One without
marks is replaced by TRL's training variant of the same template when TRL knows it; otherwise they are derived from
its prefixes (see renderer.py), and a template that does not allow that is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.rendering.named_templates import DEFAULT, PROBE_TOOL, TOOL_USE, by_tools
from data_prep.tokenization.tokenizer import load_tokenizer, special_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DIR = Path(__file__).parents[1] / "templates"
GENERATION_MARK = re.compile(r"{%-?\s*generation\s*-?%}")
_IN_BRACKETS = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_CONTROL_TOKENS = re.compile(r"{#- control tokens: (.*?) -#}")
_PLACED = re.compile(r"{#- contents: placed(?:, unless (\S+))? -#}\n")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template ready to render with one tokenizer."""

    text: str  # Jinja, as it is saved with the shards and later served
    origin: str  # where it came from, for the manifest and for messages
    has_marks: bool  # {% generation %} marks; otherwise spans are derived from prefixes
    is_placed: bool = False  # prints each content once, as it is or trimmed (see template_skeletons.py)
    unless: str | None = None  # text whose contents are not placed so, with `is_placed`
    branch: str | None = None  # the part of the text for rows without tools, or with, where they differ
    tool_use: ChatTemplate | None = None  # the same text for rows with tools, where those have a branch of their own
    probe_tools: tuple[dict[str, Any], ...] = ()  # given in probes, to a branch for rows with tools

    @property
    def own_text(self) -> str:
        """What prints the rows."""
        return self.text if self.branch is None else self.branch


def built_in_names() -> list[str]:
    """Names of the templates that come with packhaul."""
    return sorted(p.stem for p in TEMPLATE_DIR.glob("*.jinja"))


def resolve_chat_template(
    wanted: str, tokenizer: PreTrainedTokenizerBase, *, empty_reasoning: str = "mask"
) -> ChatTemplate:
    """The template that the recipe's `chat_template` names, fitted to the tokenizer.

    Args:
        empty_reasoning: see Renderer; with "leave_out", a built-in template prints no empty block of reasoning.

    Raises:
        ValueError: an unknown name, a tokenizer without a template, or one that lacks the template's control tokens.
    """
    if wanted in built_in_names():
        return _built_in(wanted, tokenizer, empty_reasoning != "leave_out")
    if wanted == "tokenizer":
        return _from_tokenizer(tokenizer, tokenizer, "the tokenizer")
    if wanted.startswith("tokenizer:"):
        name = wanted.removeprefix("tokenizer:")
        return _from_tokenizer(load_tokenizer(name), tokenizer, name)
    if wanted.endswith((".jinja", ".jinja2")):
        return _from_file(Path(wanted))
    raise ValueError(
        f"chat_template {wanted!r} is not known: expected one of {built_in_names()}, 'tokenizer', "
        "'tokenizer:FOLDER_OR_HUB_ID', or the path of a .jinja file"
    )


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts BOS before plain text; then its model has been trained with one."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def control_token_ids(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> dict[str, int]:
    """Text -> id of what means more than its characters: the special tokens, and other added tokens in brackets that
    the template names (`<tool_call>`, `<think>`) or that are no piece of the vocabulary (`<|repo_name|>`).

    Any other added token is text: words, runs of white space, Gemma's `<b>`.
    """
    model = tokenizer.backend_tokenizer.model
    more = {
        t.content: i
        for i, t in tokenizer.added_tokens_decoder.items()
        if _IN_BRACKETS.fullmatch(t.content) and (t.content in template.text or model.token_to_id(t.content) is None)
    }
    return special_token_ids(tokenizer) | more


def _built_in(name: str, tokenizer: PreTrainedTokenizerBase, prints_empty_reasoning: bool) -> ChatTemplate:
    text = (TEMPLATE_DIR / f"{name}.jinja").read_text(encoding="utf-8")
    declared = _CONTROL_TOKENS.search(text)
    assert declared, f"templates/{name}.jinja names no control tokens"
    special = special_token_ids(tokenizer)
    for token in declared[1].split():
        actual = tokenizer.eos_token if token == "eos_token" else token
        if actual is None or actual not in special:
            raise ValueError(
                f"chat_template {name!r} needs the control token {token!r}, which the tokenizer "
                f"{tokenizer.name_or_path!r} does not have as a special token: choose the template that belongs to the "
                "tokenizer (chat_template: tokenizer), or a tokenizer that has it"
            )
    placed = _PLACED.search(text)
    text = _PLACED.sub("", _CONTROL_TOKENS.sub("", text))
    text = text.replace("__BOS__", "bos_token" if adds_bos(tokenizer) else "''")
    text = text.replace("__EMPTY_REASONING__", str(prints_empty_reasoning).lower())
    return ChatTemplate(text, name, has_marks=True, is_placed=placed is not None, unless=placed and placed[1])


def _from_file(path: Path) -> ChatTemplate:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"chat_template {path}: cannot be read: {error}") from None
    return ChatTemplate(text, path.name, has_marks=bool(GENERATION_MARK.search(text)))


def _from_tokenizer(owner: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, name: str) -> ChatTemplate:
    text = owner.chat_template
    if isinstance(text, dict) and text:
        _check_has_default(text, name)
        if TOOL_USE in text:
            return _of_two(text, owner, tokenizer, name)
        text = text[DEFAULT]
    if not text:
        raise ValueError(
            f"chat_template: {name} has no chat template (a base model's often has none): name a built-in one "
            f"{built_in_names()}, or an instruct model's tokenizer as 'tokenizer:FOLDER_OR_HUB_ID'"
        )
    _check_shared_tokens(text, owner, tokenizer)
    if GENERATION_MARK.search(text):
        return ChatTemplate(text, name, has_marks=True)
    training = _trl_training_template(owner)
    if training:
        return ChatTemplate(training, f"{name}, TRL's training variant", has_marks=True)
    return ChatTemplate(text, f"{name}, marks derived from prefixes", has_marks=False)


def _check_has_default(named: dict[str, str], name: str) -> None:
    if not named.get(DEFAULT):
        raise ValueError(
            f"chat_template: {name} has the chat templates {sorted(named)} and none named {DEFAULT!r}, so transformers "
            "renders no row without tools: save the one to use as a .jinja file and name that file, or name a built-in "
            f"one {built_in_names()}"
        )


def _of_two(
    named: dict[str, str], owner: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, name: str
) -> ChatTemplate:
    """Templates for rows with tools and without, in one text: one template is saved, served and exported."""
    text = by_tools(named)
    _check_shared_tokens(text, owner, tokenizer)
    default, tool_use = (
        ChatTemplate(
            text,
            f"{name}, {kind}{'' if marks else ', marks derived from prefixes'}",
            has_marks=marks,
            branch=named[kind],
        )
        for kind in (DEFAULT, TOOL_USE)
        for marks in [bool(GENERATION_MARK.search(named[kind]))]
    )
    return replace(default, tool_use=replace(tool_use, probe_tools=(PROBE_TOOL,)))


def _check_shared_tokens(text: str, owner: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> None:
    special = special_token_ids(tokenizer)
    missing = sorted(t for t in special_token_ids(owner) if t in text and t not in special)
    if missing:
        raise ValueError(
            f"the chat template of {owner.name_or_path!r} uses the control tokens {missing}, which the tokenizer "
            f"{tokenizer.name_or_path!r} does not have: use the tokenizer that belongs to the template (`tokenizer:`)"
        )


def _trl_training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    from trl.chat_template_utils import get_training_chat_template

    try:
        text = get_training_chat_template(tokenizer)
        return text if text and _follows_its_prompt(text, tokenizer.special_tokens_map) else None
    except Exception:  # not one that TRL has a variant of, or one that raises when TRL tries it; we try it ourselves
        return None


def _follows_its_prompt(text: str, special_tokens: dict[str, Any]) -> bool:
    """Whether a turn of a template, with reasoning or without, goes on from its generation prompt. TRL's variant of
    DeepSeek V3 prompts with the beginning of reasoning that it never prints."""
    from transformers.utils.chat_template_utils import render_jinja_template

    question = [{"role": "user", "content": "Hi."}]
    answers = ("Yes.", "<think>\nHm.\n</think>\n\nYes.")
    turns = [[*question, {"role": "assistant", "content": answer}] for answer in answers]
    prompted: Any = render_jinja_template([question], chat_template=text, add_generation_prompt=True, **special_tokens)
    rendered: Any = render_jinja_template(turns, chat_template=text, **special_tokens)
    prompt, texts = prompted[0][0], rendered[0]
    return any(turn.startswith(prompt) for turn in texts)
