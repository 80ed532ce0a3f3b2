"""What a tokenizer.json says of its tokenizer, as far as a faster encoder has to know it, or why there can be none."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The pre-tokenizer that ByteLevel has built in (GPT-2's).
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHARACTER_CLASS = r"\\p\{\w+\}|\\s"
# What means the same to both regex engines. Not among it: . ^ $ \w \b, nested classes, and + after {n} (to one of them
# possessive, to the other a repetition).
_SAME_MEANING = re.compile(
    rf"(?:{CHARACTER_CLASS}|\\[Srnt]|\\[^\w\s]"  # classes, escapes
    rf"|\[\^?(?:{CHARACTER_CLASS}|\\[rnt]|\\[^\w\s]|[^\\\[\]&])+\]"  # bracketed classes
    r"|\(\?i:|\(\?:|\(\?!|\(\?=|\(|\)|\|"
    r"|[?*+]\+?(?![?*+])|\{\d+(?:,\d*)?\}(?![?*+])"
    r"|[^\\\[\](){}|?*+.^$])*"
)


class NotConvertible(ValueError):
    """Why a faster encoder cannot take a tokenizer."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before anything else."""

    content: str
    id: int
    lstrip: bool  # takes the white space before it
    rstrip: bool  # takes the white space after it
    single_word: bool
    normalized: bool  # looked for after the others, in what is left


def described(backend: Tokenizer, serialised: str | None) -> dict[str, Any]:
    """The tokenizer's JSON.

    Args:
        serialised: the tokenizer's `to_str`, which takes a while, where it is known.

    Raises:
        NotConvertible: the tokenizer is set to do more than encode.
    """
    found: dict[str, Any] = json.loads(serialised or backend.to_str())
    for setting in ("truncation", "padding"):
        if found.get(setting):
            raise NotConvertible(f"the tokenizer has {setting} switched on")
    if backend.encode_special_tokens:
        raise NotConvertible("the tokenizer encodes special tokens as text")
    return found


def split_added_tokens(serialised: str) -> tuple[str, list[dict[str, Any]], str]:
    """A tokenizer's JSON around its added tokens, and these. The rest, with the vocabulary, is not read: that takes
    seconds where it is large."""
    key = '"added_tokens":'
    start = serialised.index(key) + len(key)
    start += len(serialised[start : start + 100]) - len(serialised[start : start + 100].lstrip())
    added_tokens, end = json.JSONDecoder().raw_decode(serialised, start)
    return serialised[:start], added_tokens, serialised[end:]


def with_special(serialised: str, special: Collection[str]) -> str:
    """A tokenizer's JSON in which these added tokens are special too."""
    before, tokens, after = split_added_tokens(serialised)
    for token in tokens:
        token["special"] |= token["content"] in special
    return f"{before}{json.dumps(tokens)}{after}"


def check_model(model: dict[str, Any]) -> None:
    """Refuse what is no BPE, or one that does more than merge."""
    if model["type"] != "BPE":
        raise NotConvertible(f"its model is {model['type']}, not a byte-level BPE")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise NotConvertible(f"its model uses {setting}: not a byte-level BPE of the GPT-2 kind")


def split_pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The pattern that splits a text into the words within which merging happens."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    if not steps or not steps[-1] or steps[-1]["type"] != "ByteLevel" or len(steps) > 2:
        raise NotConvertible("its pre-tokenizer is not one split followed by bytes")
    if steps[-1]["add_prefix_space"]:
        raise NotConvertible("its pre-tokenizer puts a space before the text")
    if (len(steps) == 1) != steps[-1]["use_regex"]:
        raise NotConvertible("its pre-tokenizer splits twice, or not at all")
    pattern = _regex_of(steps[0]) if len(steps) == 2 else _GPT2_PATTERN
    if not _SAME_MEANING.fullmatch(pattern):
        raise NotConvertible("the pattern of its pre-tokenizer has signs whose meaning differs between regex engines")
    return pattern


def _regex_of(split: dict[str, Any]) -> str:
    # Both keep the matches; what no match covers is found out when a text is encoded.
    how = split.get("behavior"), split.get("invert")
    if split["type"] != "Split" or "Regex" not in split["pattern"]:
        raise NotConvertible("its pre-tokenizer does not split by a pattern")
    if how not in (("Isolated", False), ("Removed", True)):
        raise NotConvertible(f"its pre-tokenizer splits in another way (behavior {how[0]}, invert {how[1]})")
    return split["pattern"]["Regex"]


def is_nfc(normalizer: dict[str, Any] | None) -> bool:
    """Whether text is brought into Unicode's normal form C first; anything else is refused."""
    if normalizer is None:
        return False
    kinds = [step["type"] for step in normalizer.get("normalizers", [normalizer])]
    if any(kind != "NFC" for kind in kinds):
        raise NotConvertible(f"its normalizer changes text otherwise than by NFC ({', '.join(kinds)})")
    return bool(kinds)


def added_tokens(tokens: list[dict[str, Any]], is_nfc: bool) -> tuple[AddedToken, ...]:
    """What is cut out of a text first.

    Raises:
        NotConvertible: one of them is never found as it is written.
    """
    return tuple(_added_token(token, is_nfc) for token in tokens)


def _added_token(token: dict[str, Any], is_nfc: bool) -> AddedToken:
    flags = {name: token[name] for name in ("lstrip", "rstrip", "single_word", "normalized")}
    if is_nfc and flags["normalized"] and not unicodedata.is_normalized("NFC", token["content"]):
        raise NotConvertible(f"its added token {token['content']!r} is looked for in another normal form")
    return AddedToken(token["content"], token["id"], **flags)


def byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for: itself where visible, else one from 256 up."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
