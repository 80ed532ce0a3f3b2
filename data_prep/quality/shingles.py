"""Hashed tokens, and hashed runs of tokens (shingles), of many texts at once.

A token is a run of characters between spaces; each character of a script that is written without spaces, or with few
(Chinese, Japanese, Korean, Thai, ...), is a token of its own. Hashes depend on the text alone, so they are equal in all
processes and on all machines.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SEPARATOR, WORD, CHARACTER = 0, 1, 2
_FIRST_UNLISTED = 0x20000  # from here on: rare ideographs, then code points that no text holds
# Scripts taken character by character: first and last code point.
_CHARACTER_SCRIPTS = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul letters
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # ideograph radicals
    (0x3040, 0x31FF),  # Kana, Bopomofo, Hangul letters, more Kana
    (0x3400, 0x4DBF),  # ideographs
    (0x4E00, 0xA4CF),  # ideographs, Yi
    (0xA960, 0xA97F),  # Hangul letters
    (0xAC00, 0xD7FF),  # Hangul syllables and letters
    (0xF900, 0xFAFF),  # ideographs
    (_FIRST_UNLISTED, 0x3FFFF),  # ideographs
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of several texts, one after the other."""

    hashes: np.ndarray  # (tokens,) uint64
    starts: np.ndarray  # (texts + 1,) int64: text t has the tokens starts[t]:starts[t + 1]
    begins: np.ndarray  # (tokens,) int64: the token's first character in `text`
    is_character: np.ndarray  # (tokens,) bool: one character of a script that is taken by characters
    kinds: np.ndarray  # (characters,) uint8: SEPARATOR, WORD or CHARACTER
    text: str  # the normalised texts, each with a line break behind it

    @property
    def counts(self) -> np.ndarray:
        """(texts,) int64: tokens of each text."""
        return np.diff(self.starts)

    def spelled(self, first: int, count: int) -> str:
        """The normalised text from token `first` over `count` tokens."""
        begin, last = int(self.begins[first]), int(self.begins[first + count - 1])
        end = last + 1
        while self.kinds[last] == WORD == self.kinds[end]:
            end += 1
        return " ".join(self.text[begin:end].split())


def normalize(text: str) -> str:
    """NFKC (full-width and half-width forms, decomposed Hangul) and lower case."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def tokenize(texts: list[str], *, keep_punctuation: bool, characters_below: int = 0) -> Tokens:
    """Hash the tokens of each text.

    Args:
        keep_punctuation: punctuation and symbols belong to the words; otherwise they separate them, as spaces do.
        characters_below: a text of fewer tokens than this is taken by characters, whatever its script.
    """
    normalized = [normalize(t) + "\n" for t in texts]
    joined = "".join(normalized)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    sizes = np.fromiter(map(len, normalized), dtype=np.int64, count=len(texts))
    kinds = kinds_by_script = _kinds(keep_punctuation)[codes]
    begins, starts = _boundaries(kinds, sizes)
    if characters_below:
        is_short = np.repeat(np.diff(starts) < characters_below, sizes)
        kinds = np.where(is_short & (kinds == WORD), np.uint8(CHARACTER), kinds)
        begins, starts = _boundaries(kinds, sizes)
    is_character = kinds_by_script[begins] == CHARACTER
    return Tokens(_hash_tokens(codes, kinds, begins), starts, begins, is_character, kinds, joined)


def shingle_hashes(tokens: Tokens, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All runs of `size` tokens within a text: (shingles,) uint64 hashes, (texts + 1,) int64 each text's first.

    A text of fewer than `size` tokens has one shingle, of all its tokens; a text without tokens, an empty one.

    Texts of 4 and of 1 tokens, size 3; 0 is put where tokens are missing:

        hashes       a   b   c   d | e   0   0
        combined     abc bcd cde de0 e00           a run from each token on, across the texts' borders too
        starts       0   2   3                     the texts have 2 and 1 runs of their own
        place        0   1   4                     of these in `combined`: run number + what is passed over before
    """
    missing = np.maximum(size - tokens.counts, 0)
    hashes = np.insert(tokens.hashes, np.repeat(tokens.starts[1:], missing), np.uint64(0))
    counts = tokens.counts + missing
    combined = np.zeros(max(hashes.size - size + 1, 0), dtype=np.uint64)
    for offset in range(size):
        combined = combined * _MULTIPLIER + hashes[offset : offset + combined.size]
    num_runs = counts - size + 1
    starts = offsets(num_runs)
    passed_over = np.repeat(offsets(counts)[:-1] - starts[:-1], num_runs)
    place = passed_over + np.arange(starts[-1])
    return mix_bits(combined[place]), starts


def text_hashes(tokens: Tokens) -> np.ndarray:
    """(texts,) uint64: one hash of each text's tokens in their order."""
    place = np.arange(tokens.hashes.size) - np.repeat(tokens.starts[:-1], tokens.counts)
    sums = offsets(mix_bits(tokens.hashes + place.astype(np.uint64) * _MULTIPLIER))
    return mix_bits(np.diff(sums[tokens.starts]))


def mix_bits(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): every input bit changes every output bit with even odds."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _boundaries(kinds: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where tokens begin, and which token is each text's first."""
    begin = kinds == CHARACTER
    word = kinds == WORD
    begin[1:] |= word[1:] & ~word[:-1]
    begin[:1] |= word[:1]
    begins = np.flatnonzero(begin)
    return begins, np.searchsorted(begins, offsets(sizes))


def _hash_tokens(codes: np.ndarray, kinds: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """A token's hash is the sum over its characters of a hash of the character and its place in the token."""
    if not begins.size:
        return np.zeros(0, dtype=np.uint64)
    # Each token's characters go to where the next token begins: separators behind it count as 0.
    first, ends = begins[0], np.append(begins[1:], codes.size)
    place = np.arange(first, codes.size) - np.repeat(begins, ends - begins)
    values = mix_bits(codes[first:].astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32)) + np.uint64(1))
    values[kinds[first:] == SEPARATOR] = 0
    return mix_bits(np.add.reduceat(values, begins - first))


def offsets(counts: np.ndarray) -> np.ndarray:
    """(n + 1,) of the same kind: the sum before each count, and of all."""
    sums = np.zeros(counts.size + 1, dtype=np.uint64 if counts.dtype == np.uint64 else np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


@lru_cache(maxsize=2)
def _kinds(keep_punctuation: bool) -> np.ndarray:
    """(0x110000,) uint8: the kind of each code point."""
    kinds = np.full(0x110000, WORD, dtype=np.uint8)
    for code in range(_FIRST_UNLISTED):
        category = unicodedata.category(chr(code))
        if category[0] in "ZC" or (category[0] in "PS" and not keep_punctuation):
            kinds[code] = SEPARATOR
    for first, last in _CHARACTER_SCRIPTS:
        listed = kinds[first : last + 1]
        listed[listed == WORD] = CHARACTER
    return kinds
