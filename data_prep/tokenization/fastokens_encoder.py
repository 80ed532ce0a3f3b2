"""fastokens, for byte-level BPE (Qwen, Llama 3, GPT-2) and BPE that writes spaces as a sign (Gemma, Llama 2, Mistral).

It reads the tokenizer's own JSON, and is a second implementation of `tokenizers`: nothing is converted, so nothing can
be argued, and its proof is wider. On top of the texts that all encoders are proven on come all characters, each among
letters, digits and spaces, and long texts that begin alike, one after the other, because it remembers the text before.
It makes ids alone: the characters of a token are found from the bytes of each token of the vocabulary.

It never sees a text that a normalizer changes otherwise than by writing spaces as a sign, nor one that holds that sign.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.tokenization.encoded_text import ByteTokens
from data_prep.tokenization.fast_encoder import FastEncoder, FastTokens, whole
from data_prep.tokenization.normal_form import characters_that_may_change
from data_prep.tokenization.proof_texts import hard_texts, long_texts, texts_of_all_characters
from data_prep.tokenization.space_before import SIGN, SpaceBefore, take_off, take_out
from data_prep.tokenization.tokenizer_json import (
    AddedToken,
    NotConvertible,
    added_tokens,
    byte_alphabet,
    check_model,
    described,
    is_nfc,
    split_pattern,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Read once per process, when the first text is encoded. Workers share the cores, and only one thread alone remembers no
# more than so many words.
os.environ["FASTOKENS_BPE_THREADS"] = "1"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def build(tokenizer: Tokenizer, serialised: str | None = None) -> FastokensEncoder | str:
    """The encoder for a tokenizer, or the reason why there is none.

    Args:
        serialised: the tokenizer's `to_str`, which takes a while, where it is known.
    """
    try:
        import fastokens._native  # noqa: F401
    except ImportError:
        return "it is not installed"
    try:
        found = described(tokenizer, serialised)
        encoder = _encoder(found)
    except ValueError as reason:
        return str(reason)
    texts = [*hard_texts(token["content"] for token in found["added_tokens"]), *long_texts()]
    return (
        encoder.gives_up()
        or encoder.check(texts, tokenizer)
        or encoder.check_ids(texts_of_all_characters(), tokenizer)
        or encoder
    )


def _encoder(found: dict[str, Any]) -> FastokensEncoder:
    check_model(found["model"])
    has_signs = bool(found["model"].get("byte_fallback"))
    may_change = None
    scheme = "never"
    if has_signs:
        scheme = take_out(found)
    else:
        split_pattern(found["pre_tokenizer"])
        may_change = characters_that_may_change() if is_nfc(found["normalizer"]) else None
        found["normalizer"] = None  # its own knows other characters
    added = added_tokens(found["added_tokens"], may_change is not None)
    _check_added(added)
    _check_bytes(found["model"]["vocab"], _BYTES if has_signs else byte_alphabet())
    found["post_processor"] = None
    spaces = SpaceBefore.of(scheme, added) if scheme != "never" else None
    serialised = json.dumps(found, ensure_ascii=False)
    return FastokensEncoder(serialised, _lengths(found, has_signs), has_signs, may_change, spaces)


def _check_bytes(vocab: dict[str, int], spelled: Iterable[str]) -> None:
    missing = sum(byte not in vocab for byte in spelled)
    if missing:
        raise NotConvertible(f"{missing} bytes are no tokens of it")


def _check_added(tokens: tuple[AddedToken, ...]) -> None:
    for token in tokens:
        if token.lstrip or token.rstrip or token.single_word:
            raise NotConvertible(f"its added token {token.content!r} takes white space, or wants to be a word")
    later = [token.content for token in tokens if token.normalized]
    for first in (token.content for token in tokens if not token.normalized):
        for second in later:
            if _can_overlap(first, second) or _can_overlap(second, first):
                raise NotConvertible(
                    f"its added tokens {first!r} and {second!r} can overlap, and one is looked for first"
                )


def _can_overlap(left: str, right: str) -> bool:
    """Whether the right one may begin within the left one."""
    return any(right.startswith(left[i:]) or left[i:].startswith(right) for i in range(len(left)))


def _lengths(found: dict[str, Any], has_signs: bool) -> np.ndarray:
    """(ids,) int64: how many bytes of a text each token holds."""
    vocab: dict[str, int] = found["model"]["vocab"]
    added: dict[str, int] = {token["content"]: token["id"] for token in found["added_tokens"]}
    lengths = np.zeros(1 + max([*vocab.values(), *added.values()]), dtype=np.int64)
    for content, number in added.items():
        lengths[number] = len(content.encode())
    if has_signs:
        for token, number in vocab.items():
            lengths[number] = len(token.replace(SIGN, " ").encode())
        lengths[[vocab[byte] for byte in _BYTES]] = 1
        return lengths
    signs = byte_alphabet().keys()
    for token, number in vocab.items():
        if token not in added and signs >= set(token):
            lengths[number] = len(token)
    return lengths


class FastokensEncoder(FastEncoder):
    """See FastEncoder.

    Args:
        serialised: the tokenizer's JSON, in which no normalizer is left but the one that writes spaces as a sign.
        lengths: (ids,) int64, bytes of each token.
        has_signs: spaces are written as a sign.
        spaces: which spaces are put before a text, if any.
    """

    def __init__(
        self,
        serialised: str,
        lengths: np.ndarray,
        has_signs: bool,
        may_change: re.Pattern[str] | None,
        spaces: SpaceBefore | None,
    ):
        super().__init__(may_change)
        from fastokens._native import Tokenizer

        self._serialised, self._lengths, self._has_signs = serialised, lengths, has_signs
        self._spaces = spaces
        self._native = Tokenizer.from_json_str(serialised)

    @property
    def name(self) -> str:
        """For people and manifests."""
        return f"fastokens {version('fastokens')}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._serialised, self._lengths, self._has_signs, self._may_change, self._spaces)

    def _takes(self, text: str) -> bool:
        return not (self._has_signs and SIGN in text) and super()._takes(text)

    def check_ids(self, texts: Iterable[str], tokenizer: Tokenizer) -> str | None:
        """As `check`, for many texts: the ids alone."""
        texts = list(texts)
        expected = tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, fast, encoding in zip(texts, self.encode_batch(texts), expected, strict=True):
            if fast is not None and fast.ids.tolist() != encoding.ids:
                return f"it encodes {text[:60]!r} otherwise"
        return None

    def encode_special_as_text(self, texts: list[str]) -> list[FastTokens | None]:
        """See FastEncoder. Not where spaces are put: they depend on which tokens are found."""
        if self._spaces is not None:
            return super().encode_special_as_text(texts)
        return self._encode_those_taken(texts, partial(self._encode_as_they_are, special_as_text=True))

    def _encode_taken(self, texts: list[str]) -> Iterable[FastTokens | None]:
        if self._spaces is None:
            return self._encode_as_they_are(texts)
        spaced = [self._spaces.put(text) for text in texts]
        encoded = self._encode_as_they_are([text for text, _ in spaced])
        return (
            tokens and take_off(text, places, tokens)
            for text, (_, places), tokens in zip(texts, spaced, encoded, strict=True)
        )

    def _encode_as_they_are(self, texts: list[str], special_as_text: bool = False) -> Iterable[ByteTokens | None]:
        try:
            ids, stops = self._ids_of(texts, special_as_text)
        except ValueError:  # of one text, for its regex engine
            return [self._encode_alone(text, special_as_text) for text in texts]
        ends = self._lengths[ids].cumsum()
        starts = stops[:-1]
        ends -= np.repeat(np.append(0, ends)[starts], np.diff(stops))  # less the bytes of the texts before
        return self._cut(texts, ids, ends, stops)

    def _encode_alone(self, text: str, special_as_text: bool) -> ByteTokens | None:
        try:
            ids, _ = self._ids_of([text], special_as_text)
        except ValueError:
            return None
        return whole(text, ids, self._lengths[ids].cumsum())

    def _ids_of(self, texts: list[str], special_as_text: bool) -> tuple[np.ndarray, np.ndarray]:
        """(tokens,) int32 ids of all texts, and (texts + 1,) int64, where each begins and the last ends."""
        ids, stops = self._native.encode_batch_flat(texts, split_special_tokens=special_as_text)
        return np.frombuffer(ids, dtype=np.int32), np.frombuffer(stops, dtype=np.int64)

    @staticmethod
    def _cut(texts: list[str], ids: np.ndarray, ends: np.ndarray, stops: np.ndarray) -> Iterator[ByteTokens | None]:
        start = 0
        for text, stop in zip(texts, stops[1:].tolist(), strict=True):
            yield whole(text, ids[start:stop], ends[start:stop])
            start = stop
