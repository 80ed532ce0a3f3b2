"""What a faster encoder is, and how it is proven equal to `tokenizers`.

An encoder is used after a proof only, made once when a run starts: it takes the tokenizer's settings, and the ids and
the characters of each token are equal on a hard set of texts; `check` repeats the latter on a sample of the run's own.
It leaves to `tokenizers` any text that it cannot answer for.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from data_prep.tokenization.encoded_text import ByteTokens, OffsetTokens, SpacedTokens
from data_prep.tokenization.normal_form import is_normal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Characters. Regex engines give up at a million steps, which one run of spaces can take.
LONGEST_TEXT = 100_000


FastTokens = ByteTokens | SpacedTokens


class FastEncoder(ABC):
    """Encodes as `tokenizers` does without adding special tokens. Pickles small enough to send to a worker.

    Args:
        may_change: what a text that the tokenizer's normalizer may change holds (see normal_form.py), if it has one.
    """

    def __init__(self, may_change: re.Pattern[str] | None):
        self._may_change = may_change

    @property
    @abstractmethod
    def name(self) -> str:
        """For people and manifests."""

    @abstractmethod
    def _encode_taken(self, texts: list[str]) -> Iterable[FastTokens | None]:
        """Each text's tokens, or None."""

    def encode(self, text: str) -> FastTokens | None:
        """The text's tokens, or None if `tokenizers` has to encode it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[FastTokens | None]:
        """Each text's tokens, or None if `tokenizers` has to encode it."""
        return self._encode_those_taken(texts, self._encode_taken)

    def encode_special_as_text(self, texts: list[str]) -> list[FastTokens | None]:
        """As encode_batch, with special tokens as the text that they are; None where it cannot."""
        return [None for _ in texts]

    def _encode_those_taken(
        self, texts: list[str], encode: Callable[[list[str]], Iterable[FastTokens | None]]
    ) -> list[FastTokens | None]:
        are_taken = [self._takes(text) for text in texts]
        encoded = iter(encode([text for text, is_taken in zip(texts, are_taken, strict=True) if is_taken]))
        return [next(encoded) if is_taken else None for is_taken in are_taken]

    def _takes(self, text: str) -> bool:
        return len(text) <= LONGEST_TEXT and (self._may_change is None or is_normal(text, self._may_change))

    def check(self, texts: Iterable[str], tokenizer: Tokenizer) -> str | None:
        """The first of the texts, as part of a reason, that is encoded otherwise than by `tokenizers`; None if none.
        Where the tokenizer encodes special tokens as text, so does this."""
        texts = list(texts)
        encode = self.encode_special_as_text if tokenizer.encode_special_tokens else self.encode_batch
        for text, fast in zip(texts, encode(texts), strict=True):
            if fast is None:
                continue
            encoding = tokenizer.encode(text, add_special_tokens=False)
            if fast.ids.tolist() != OffsetTokens(encoding).ids.tolist():
                return f"it encodes {text[:60]!r} otherwise"
            if [fast.characters_of(i) for i in range(fast.ids.size)] != encoding.offsets:
                return f"its tokens have other characters in {text[:60]!r}"
        return None

    def gives_up(self) -> str | None:
        """Why it cannot be used, if the regex engine panics on texts of one character, which take the most steps."""
        for run in " \na1!":
            try:
                self.encode(run * (LONGEST_TEXT - 1) + "x")
            except BaseException as error:  # PanicException, which is no Exception and has no name to import
                if type(error).__name__ != "PanicException":
                    raise
                return f"its pattern takes too many steps on a run of {run!r}"
        return None


def whole(text: str, ids: np.ndarray, ends: np.ndarray) -> ByteTokens | None:
    """The tokens, if they cover the text: the pattern may leave something out."""
    num_bytes = len(text) if text.isascii() else len(text.encode())
    covered = ends.item(-1) if ends.size else 0
    return ByteTokens(text, ids, ends) if covered == num_bytes else None
