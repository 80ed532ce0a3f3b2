"""One encoded text, whichever encoder made it: its token ids, and which tokens hold which characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from data_prep.fast_encoder import FastEncoder

_CACHED_WORDS = 100_000
_HELD_TOKENS = 1 << 19  # whose encodings are never freed: 50 to 100 MB (see TextEncoder._hold)
Span = tuple[int, int]  # first and one past the last character


class EncodedText(Protocol):
    """What making labels needs of an encoded text."""

    @property
    def ids(self) -> np.ndarray:
        """(tokens,) int32."""

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and the last token that hold a byte of the characters [start, end); None if there is none."""

    def characters_of(self, token: int) -> Span:
        """The characters of which a token holds a byte. Tokens that share one character share it here too."""


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
        begin, stop = self._byte(start), self._byte(end)
        return int(self.ends.searchsorted(begin, "right")), int(self.ends.searchsorted(stop - 1, "right"))

    def characters_of(self, token: int) -> Span:
        """See EncodedText."""
        begin, end = self.ends.item(token - 1) if token else 0, self.ends.item(token)
        return self._character(begin), self._character(end - 1) + 1

    @cached_property
    def _starts(self) -> np.ndarray:
        """(characters + 1,) the byte at which each character starts, then the number of bytes."""
        raw = np.frombuffer(self.text.encode(), dtype=np.uint8)
        return np.append(np.flatnonzero(raw & 0xC0 != 0x80), raw.size)

    def _byte(self, character: int) -> int:
        return character if self.text.isascii() else self._starts.item(character)

    def _character(self, byte: int) -> int:
        return byte if self.text.isascii() else int(self._starts.searchsorted(byte, "right")) - 1


class TextEncoder:
    """Encodes texts without adding special tokens: by the fast encoder where there is one that takes the text.

    Pickles small enough to send to a worker, which loads the tokenizer at once, or where there is a fast encoder only
    when a text needs it.

    Args:
        backend: padding and truncation, which a tokenizer.json may bring along, are switched off in it.
    """

    def __init__(self, backend: Tokenizer):
        backend.no_padding()  # it would fill the texts of a call up to the longest,
        backend.no_truncation()  # and this cut them, without a word
        _widen_cache(backend)
        self._backend: Tokenizer | None = backend
        self._serialised = ""
        self._fast: FastEncoder | None = None
        self._looks_words_up = False
        self._held: list[Encoding] = []
        self._held_tokens = 0

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of `tokenizers`."""
        if self._backend is None:
            from tokenizers import Tokenizer

            self._backend = Tokenizer.from_str(self._serialised)
            _widen_cache(self._backend)
            if self._looks_words_up:
                model: Any = self._backend.model
                model.ignore_merges = True
        return self._backend

    @property
    def name(self) -> str:
        """Which encoder it is, for people and manifests."""
        return self._fast.name if self._fast else f"tokenizers {version('tokenizers')}"

    def use_fast(self, sample: Sequence[str]) -> str | None:
        """Encode with the faster encoder from now on, if there is one for this tokenizer that is proven exact.

        Args:
            sample: texts of the run itself, on which it has to agree as well.

        Returns:
            Why `tokenizers` goes on to encode, or None if the fast one does.
        """
        from data_prep.fast_encoder import build

        self._serialised = self.backend.to_str()
        built = build(self.backend, self._serialised)
        if isinstance(built, str):
            return built
        if reason := built.check(sample, self.backend):
            return reason
        self._fast = built
        return None

    def look_words_up(self) -> bool:
        """Take a word that is a token for that token from now on, instead of merging it, if that is proven the same:
        a sixth of the time of `tokenizers`. Its own copy does so: the tokenizer that is saved stays as it is.

        Returns:
            Whether it does.
        """
        if self._fast is None and merges_make_all(self.backend):
            self._serialised = self.backend.to_str()
            self._looks_words_up, self._backend = True, None
        return self._looks_words_up

    def encode_batch(self, texts: list[str]) -> list[EncodedText]:
        """Encode the texts, in order."""
        encoded: list[EncodedText | None] = list(self._fast.encode_batch(texts)) if self._fast else [None] * len(texts)
        rest = [i for i, one in enumerate(encoded) if one is None]
        if rest:
            encodings = self.backend.encode_batch([texts[i] for i in rest], add_special_tokens=False)
            self._hold(encodings)
            for i, encoding in zip(rest, encodings, strict=True):
                encoded[i] = OffsetTokens(encoding)
        return [one for one in encoded if one is not None]

    def _hold(self, encodings: list[Encoding]) -> None:
        """Never free the first encodings: between them in memory lie the words that `tokenizers` remembers, and in the
        holes between those every later text would take a fifth longer to encode."""
        for encoding in encodings:
            if self._held_tokens + len(encoding) > _HELD_TOKENS:
                return
            self._held.append(encoding)
            self._held_tokens += len(encoding)

    def __getstate__(self) -> dict[str, Any]:
        serialised = self._serialised or self.backend.to_str()
        return self.__dict__ | {"_backend": None, "_serialised": serialised, "_held": [], "_held_tokens": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._fast is None:
            self._backend = self.backend


def merges_make_all(backend: Tokenizer) -> bool:
    """Whether each token of the vocabulary is what merging makes of the token's own characters. Then a word that is a
    token encodes as it, and may be looked up: the model's `ignore_merges`."""
    from tokenizers import models

    model: Any = backend.model
    if not isinstance(model, models.BPE) or model.ignore_merges or model.dropout:
        return False
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return all([made.id for made in model.tokenize(token)] == [number] for token, number in vocabulary.items())


def _widen_cache(backend: Tokenizer) -> None:
    """`tokenizers` remembers the first 10,000 words that it has merged; more save it a fifteenth of the time. Only what
    it remembers changes, not what it answers."""
    if hasattr(backend.model, "_resize_cache"):  # BPE and Unigram have one
        backend.model._resize_cache(_CACHED_WORDS)
