"""Converts a byte-level BPE of `tokenizers` to tiktoken, or says why it cannot be converted.

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

import re
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from data_prep.tokenization.tokenizer_json import (
    CHARACTER_CLASS,
    AddedToken,
    NotConvertible,
    added_tokens,
    byte_alphabet,
    check_model,
    described,
    is_nfc,
    split_pattern,
)


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
    found = described(backend, serialised)
    check_model(found["model"])
    pattern, nfc = split_pattern(found["pre_tokenizer"]), is_nfc(found["normalizer"])
    added = added_tokens(found["added_tokens"], nfc)
    cut_out = {token.content for token in added if not token.single_word}
    return ByteBPE(_ranks(backend, found["model"], cut_out), pattern, nfc, added)


def _ranks(backend: Tokenizer, model: dict[str, Any], cut_out: set[str]) -> dict[bytes, int]:
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = [vocab[first + second] for first, second in merges]
    if made != sorted(made):
        raise NotConvertible("its merges do not stand in the order of the ids that they make")
    byte_of = byte_alphabet()
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


def differing_classes(pattern: str) -> list[str]:
    """The character classes in the pattern that hold other characters in tiktoken than in `tokenizers`.

    All characters of the first two planes are looked at, and every 61st of the others, which hold long uniform blocks.
    """
    from tiktoken import Encoding

    codes = chain(range(0xD800), range(0xE000, 0x20000), range(0x20000, 0x110000, 61))
    characters = "".join(map(chr, codes))
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    differing = []
    for name in sorted(set(re.findall(CHARACTER_CLASS, pattern))):
        others = normalizers.Replace(Regex(name), "").normalize_str(characters)
        encoding = Encoding("class", pat_str=rf"[^{name}]", mergeable_ranks=single_bytes, special_tokens={})
        if encoding.decode(encoding.encode_ordinary(characters)) != others:
            differing.append(name)
    return differing
