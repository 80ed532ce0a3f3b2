"""Spaces that a tokenizer puts before a text and after each added token (Llama 2, Mistral).

We put them and take them off again, so that an encoder without offsets has nothing to do with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.tokenization.encoded_text import ByteTokens, SpacedTokens
from data_prep.tokenization.tokenizer_json import AddedToken, NotConvertible

SIGN = "▁"  # SentencePiece's, for a space
_WRITES = {"type": "Replace", "pattern": {"String": " "}, "content": SIGN}
# After that there is no space left to split at.
_SPLITS_NOWHERE = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_PREPENDS = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SIGN}, _WRITES]}


def take_out(found: dict[str, Any]) -> str:
    """Let the tokenizer's JSON write spaces as a sign and no more.

    Returns:
        What else it did: "never", "always", "unless_there" or "first" puts a space before a text.

    Raises:
        NotConvertible: it does something else.
    """
    scheme = _scheme(found["normalizer"], found["pre_tokenizer"])
    found["normalizer"], found["pre_tokenizer"] = _WRITES, None
    return scheme


def _scheme(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None) -> str:
    if normalizer is None and pre_tokenizer and pre_tokenizer["type"] == "Metaspace":
        if pre_tokenizer["replacement"] != SIGN or pre_tokenizer["split"]:
            raise NotConvertible("its pre-tokenizer splits at spaces")
        return {"always": "unless_there"}.get(pre_tokenizer["prepend_scheme"], pre_tokenizer["prepend_scheme"])
    if normalizer not in (_WRITES, _PREPENDS):
        raise NotConvertible("its normalizer does something else than to write spaces as a sign")
    if pre_tokenizer not in (None, _SPLITS_NOWHERE):
        raise NotConvertible("its pre-tokenizer splits text that has no spaces")
    return "always" if normalizer == _PREPENDS else "never"


@dataclass(frozen=True)
class SpaceBefore:
    """Puts spaces where the tokenizer would.

    Args:
        scheme: see take_out.
        added: finds added tokens, and the longest where several begin.
    """

    scheme: str
    added: re.Pattern[str]

    @classmethod
    def of(cls, scheme: str, tokens: tuple[AddedToken, ...]) -> SpaceBefore:
        """Raises NotConvertible where a space that is put would change which added tokens are found."""
        for token in tokens:
            if scheme != "never" and (token.normalized or token.content.startswith(" ")):
                raise NotConvertible(f"its added token {token.content!r} may be found in a space put before a text")
        longest_first = sorted((token.content for token in tokens), key=len, reverse=True)
        return cls(scheme, re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"))

    def put(self, text: str) -> tuple[str, list[int]]:
        """The text with spaces, and the character at which each of them stands in it."""
        pieces: list[str] = []
        places: list[int] = []
        length = 0
        for start, end in self._between(text):
            if start < end and self._needs(text, start):
                places.append(start + len(places))
                pieces += (text[length:start], " ")
                length = start
        return "".join((*pieces, text[length:])), places

    def _between(self, text: str) -> Iterator[tuple[int, int]]:
        """The parts between added tokens."""
        done = 0
        for found in self.added.finditer(text):
            yield done, found.start()
            done = found.end()
        yield done, len(text)

    def _needs(self, text: str, start: int) -> bool:
        if self.scheme == "always":
            return True
        return text[start] != " " and (self.scheme == "unless_there" or start == 0)


def take_off(text: str, places: list[int], spaced: ByteTokens) -> ByteTokens | SpacedTokens:
    """The tokens of the text, from those of it with spaces.

    Args:
        places: the characters of the spaced text that are no part of the text.
    """
    put = np.array([spaced.byte_of(place) for place in places], dtype=np.int64)
    ends = spaced.ends - put.searchsorted(spaced.ends)
    tokens = ByteTokens(text, spaced.ids, ends)
    return SpacedTokens(tokens) if (np.diff(ends, prepend=0) == 0).any() else tokens
