"""A byte-level BPE of `tokenizers` in tiktoken's terms, or why it cannot be put in them.

Nothing here is a guess: what is returned merges every text alike in both. The argument, for tiktoken's process T (merge
the leftmost pair whose bytes are the lowest rank) and that of `tokenizers` H (merge the leftmost pair that stands first
in the list of merges):

- Ranks are ids, and merges are required to stand in the order of the ids that they make. So both prefer the same id,
  and differ at most in which pairs they may merge: H those listed, T all whose bytes are a token.
- Say they have agreed so far and T now makes the token t of x and y. No merge has crossed the borders of t's bytes, so
  within them all went as it goes when those bytes stand alone, down to x and y. Alone, H makes t of t's bytes, which is
  checked for each token; from x and y it can only have done so by merging them. So the pair is listed, and since there
  is one such x and y for each t, leftmost means the same to both.
- A token that H does not make of its own bytes is never made by merging. It is left out, unless `ignore_merges` gives
  it to words equal to it; then all pairs that make it must be listed, so that T has no more pairs than H.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

# The pre-tokenizer that ByteLevel has built in (GPT-2's).
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CLASS = r"\\p\{\w+\}|\\s"
# What means the same to both regex engines. Not among it: . ^ $ \w \b, nested classes, and + after {n} (to one of them
# possessive, to the other a repetition).
_SAME_MEANING = re.compile(
    rf"(?:{_CLASS}|\\[Srnt]|\\[^\w\s]"  # classes, escapes
    rf"|\[\^?(?:{_CLASS}|\\[rnt]|\\[^\w\s]|[^\\\[\]&])+\]"  # bracketed classes
    r"|\(\?i:|\(\?:|\(\?!|\(\?=|\(|\)|\|"
    r"|[?*+]\+?(?![?*+])|\{\d+(?:,\d*)?\}(?![?*+])"
    r"|[^\\\[\](){}|?*+.^$])*"
)


class NotConvertible(ValueError):
    """Why a tokenizer cannot be put in tiktoken's terms."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before anything else."""

    content: str
    id: int
    lstrip: bool  # takes the white space before it
    rstrip: bool  # takes the white space after it
    single_word: bool
    normalized: bool  # looked for after the others, in what is left


@dataclass(frozen=True)
class ByteBPE:
    """A byte-level BPE in tiktoken's terms."""

    ranks: dict[bytes, int]  # a token's bytes -> its id
    pattern: str  # splits a text into the words within which merging happens
    is_nfc: bool  # text is brought into Unicode's normal form C first
    added: tuple[AddedToken, ...]


def convert(backend: Tokenizer, serialised: str | None = None) -> ByteBPE:
    """Put a tokenizer in tiktoken's terms.

    Raises:
        NotConvertible: it is no byte-level BPE, or does something that has no counterpart.
    """
    if getattr(backend.model, "byte_fallback", False):  # soon said of vocabularies that take long to read
        raise NotConvertible("its model falls back to bytes for unknown characters: not a byte-level BPE")
    described = json.loads(serialised or backend.to_str())
    for setting in ("truncation", "padding"):
        if described.get(setting):
            raise NotConvertible(f"the tokenizer has {setting} switched on")
    if backend.encode_special_tokens:
        raise NotConvertible("the tokenizer encodes special tokens as text")
    _check_model(described["model"])
    pattern = _pattern(described["pre_tokenizer"])
    is_nfc = _is_nfc(described["normalizer"])
    added = tuple(_added_token(token, is_nfc) for token in described["added_tokens"])
    cut_out = {token.content for token in added if not token.single_word}
    return ByteBPE(_ranks(backend, described["model"], cut_out), pattern, is_nfc, added)


def _check_model(model: dict[str, Any]) -> None:
    if model["type"] != "BPE":
        raise NotConvertible(f"its model is {model['type']}, not a byte-level BPE")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise NotConvertible(f"its model uses {setting}: not a byte-level BPE of the GPT-2 kind")


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    if not steps or not steps[-1] or steps[-1]["type"] != "ByteLevel" or len(steps) > 2:
        raise NotConvertible("its pre-tokenizer is not one split followed by bytes")
    if steps[-1]["add_prefix_space"]:
        raise NotConvertible("its pre-tokenizer puts a space before the text")
    if (len(steps) == 1) != steps[-1]["use_regex"]:
        raise NotConvertible("its pre-tokenizer splits twice, or not at all")
    pattern = _split_pattern(steps[0]) if len(steps) == 2 else _GPT2_PATTERN
    if not _SAME_MEANING.fullmatch(pattern):
        raise NotConvertible("the pattern of its pre-tokenizer has signs whose meaning differs between regex engines")
    return pattern


def _split_pattern(split: dict[str, Any]) -> str:
    # Both keep the matches; what no match covers is found out when a text is encoded.
    how = split.get("behavior"), split.get("invert")
    if split["type"] != "Split" or "Regex" not in split["pattern"]:
        raise NotConvertible("its pre-tokenizer does not split by a pattern")
    if how not in (("Isolated", False), ("Removed", True)):
        raise NotConvertible(f"its pre-tokenizer splits in another way (behavior {how[0]}, invert {how[1]})")
    return split["pattern"]["Regex"]


def _is_nfc(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    kinds = [step["type"] for step in normalizer.get("normalizers", [normalizer])]
    if any(kind != "NFC" for kind in kinds):
        raise NotConvertible(f"its normalizer changes text otherwise than by NFC ({', '.join(kinds)})")
    return bool(kinds)


def _added_token(token: dict[str, Any], is_nfc: bool) -> AddedToken:
    flags = {name: token[name] for name in ("lstrip", "rstrip", "single_word", "normalized")}
    if is_nfc and flags["normalized"] and not unicodedata.is_normalized("NFC", token["content"]):
        raise NotConvertible(f"its added token {token['content']!r} is looked for in another normal form")
    return AddedToken(token["content"], token["id"], **flags)


def _ranks(backend: Tokenizer, model: dict[str, Any], cut_out: set[str]) -> dict[bytes, int]:
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = [vocab[first + second] for first, second in merges]
    if made != sorted(made):
        raise NotConvertible("its merges do not stand in the order of the ids that they make")
    byte_of = _byte_alphabet()
    missing = sum(character not in vocab for character in byte_of)
    if missing:
        raise NotConvertible(f"{missing} bytes are no tokens of it")
    left_out = _not_made(backend, vocab, made)
    if model.get("ignore_merges"):
        _check_all_pairs_listed(left_out - cut_out, vocab, set(merges))
        left_out &= cut_out  # no word holds them
    to_bytes = {ord(character): byte for character, byte in byte_of.items()}
    spelled = (token for token in vocab if token not in left_out and byte_of.keys() >= set(token))
    return {token.translate(to_bytes).encode("latin-1"): vocab[token] for token in spelled}


def _not_made(backend: Tokenizer, vocab: dict[str, int], made: list[int]) -> set[str]:
    """The tokens that merging does not make of their own characters."""
    listed = set(made)
    model: Any = backend.model
    ignore_merges, model.ignore_merges = model.ignore_merges, False
    try:
        return {
            token
            for token, number in vocab.items()
            if len(token) > 1 and (number not in listed or len(model.tokenize(token)) != 1)
        }
    finally:
        model.ignore_merges = ignore_merges


def _check_all_pairs_listed(tokens: set[str], vocab: dict[str, int], merges: set[tuple[str, ...]]) -> None:
    for token in tokens:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in vocab and pair[1] in vocab and pair not in merges:
                raise NotConvertible(f"its token {token!r} is whole only as a word of its own")


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for: itself where visible, else one from 256 up."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def differing_classes(pattern: str) -> list[str]:
    """The character classes in the pattern that hold other characters in tiktoken than in `tokenizers`.

    All characters of the first two planes are looked at, and every 61st of the others, which hold long uniform blocks.
    """
    from tiktoken import Encoding

    codes = chain(range(0xD800), range(0xE000, 0x20000), range(0x20000, 0x110000, 61))
    characters = "".join(map(chr, codes))
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    differing = []
    for name in sorted(set(re.findall(_CLASS, pattern))):
        others = normalizers.Replace(Regex(name), "").normalize_str(characters)
        encoding = Encoding("class", pat_str=rf"[^{name}]", mergeable_ranks=single_bytes, special_tokens={})
        if encoding.decode(encoding.encode_ordinary(characters)) != others:
            differing.append(name)
    return differing
