"""An encoded text: its token ids, and which tokens hold which characters, whichever encoder made it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]  # first and one past the last character


class LooseSpan(NamedTuple):
    """A span whose first token may hold text before it too.

    What stands before it is never trained, but is no prompt that always ends there. So a token that holds both is
    trained: it is the beginning of the answer.
    """

    start: int
    end: int


class EncodedText(Protocol):
    """What making labels needs of an encoded text."""

    @property
    def ids(self) -> np.ndarray:
        """(tokens,) int32."""

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and the last token that hold a byte of the characters [start, end); None if there is none."""

    def characters_of(self, token: int) -> Span:
        """The characters that a token holds a byte of. Tokens that share one character share it here too."""


class OffsetTokens:
    """A text encoded by `tokenizers`: its offsets say which characters a token came from.

    Args:
        ids: the ids, where they are not the encoding's own.
    """

    def __init__(self, encoding: Encoding, ids: list[int] | None = None):
        self._encoding = encoding
        self.ids = np.array(encoding.ids if ids is None else ids, dtype=np.int32)

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """See EncodedText."""
        first, last = self._encoding.char_to_token(start), self._encoding.char_to_token(end - 1)
        if start >= end or first is None or last is None:
            return None
        while (after := self._encoding.token_to_chars(last + 1)) is not None and after[0] < end:
            last += 1  # the bytes of one character share its offsets
        return first, last

    def characters_of(self, token: int) -> Span:
        """See EncodedText."""
        span = self._encoding.token_to_chars(token)
        assert span is not None, f"no token {token}"
        return span


@dataclass
class ByteTokens:
    """A text encoded byte by byte: the tokens' bytes, one after the other, are the text's."""

    text: str
    ids: np.ndarray  # (tokens,) int32
    ends: np.ndarray  # (tokens,) int64: one past each token's last byte

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """See EncodedText."""
        if not 0 <= start < end <= len(self.text):
            return None
        first_byte, last_byte = self.byte_of(start), self.byte_of(end) - 1
        # A token holds the bytes below its end: the first end above a byte is that of the byte's token.
        return int(self.ends.searchsorted(first_byte, "right")), int(self.ends.searchsorted(last_byte, "right"))

    def characters_of(self, token: int) -> Span:
        """See EncodedText."""
        first_byte = self.ends.item(token - 1) if token else 0
        last_byte = self.ends.item(token) - 1
        return self.character_of(first_byte), self.character_of(last_byte) + 1

    @cached_property
    def _starts(self) -> np.ndarray:
        """(characters + 1,) the byte at which each character starts, then the number of bytes."""
        raw = np.frombuffer(self.text.encode(), dtype=np.uint8)
        return np.append(np.flatnonzero(raw & 0xC0 != 0x80), raw.size)

    def byte_of(self, character: int) -> int:
        """The byte at which a character starts."""
        return character if self.text.isascii() else self._starts.item(character)

    def character_of(self, byte: int) -> int:
        """The character that holds a byte."""
        return byte if self.text.isascii() else int(self._starts.searchsorted(byte, "right")) - 1


class SpacedTokens:
    """A text encoded by a tokenizer that puts a space before it. That space may be a token. It holds no byte of the
    text, but as in `tokenizers` it has the character after it."""

    def __init__(self, tokens: ByteTokens):
        self.ids = tokens.ids
        self._tokens = tokens
        self._starts = np.append(0, tokens.ends[:-1])
        self._ends = np.maximum(tokens.ends, self._starts + 1)

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """See EncodedText."""
        if not 0 <= start < end <= len(self._tokens.text):
            return None
        first = self._ends.searchsorted(self._tokens.byte_of(start), "right")
        return int(first), int(self._starts.searchsorted(self._tokens.byte_of(end))) - 1

    def characters_of(self, token: int) -> Span:
        """See EncodedText."""
        first_byte, last_byte = self._starts.item(token), self._ends.item(token) - 1
        return self._tokens.character_of(first_byte), self._tokens.character_of(last_byte) + 1
