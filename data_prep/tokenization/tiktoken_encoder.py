"""tiktoken on the tokenizer's own vocabulary, for byte-level BPE tokenizers (Qwen, Llama 3, GPT-2 families).

On top of the proof that all encoders take, the model, the pattern and the normalizer convert (see
tiktoken_conversion.py), and the pattern's character classes hold the same characters. Left to `tokenizers` is a text
that NFC would change, that holds a token that must be a whole word, or that is very long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.tokenization.encoded_text import ByteTokens
from data_prep.tokenization.fast_encoder import FastEncoder, whole
from data_prep.tokenization.normal_form import characters_that_may_change
from data_prep.tokenization.proof_texts import hard_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from data_prep.tokenization.tiktoken_conversion import ByteBPE
    from data_prep.tokenization.tokenizer_json import AddedToken

_SEPARATOR = "\U0010fffe\U0010ffff"  # characters that are assigned to nothing, ever
# Unicode's White_Space: what Rust calls a space, which is not quite what Python does.
_SPACE = "".join(
    map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)
Cut = tuple[int, int, int | None]  # from character, to character, id of the added token, or None for text


def build(tokenizer: Tokenizer, serialised: str | None = None) -> TiktokenEncoder | str:
    """The encoder for a tokenizer, or the reason why there is none.

    Args:
        serialised: the tokenizer's `to_str`, which takes a while, where it is known.
    """
    try:
        import tiktoken  # noqa: F401
    except ImportError:
        return "it is not installed"
    from data_prep.tokenization.tiktoken_conversion import convert, differing_classes

    try:
        converted = convert(tokenizer, serialised)
        differing = differing_classes(converted.pattern)
        if differing:
            return f"the regex engines do not agree on {', '.join(differing)} in the pattern of its pre-tokenizer"
        encoder = TiktokenEncoder(converted)
    except ValueError as reason:
        return str(reason)
    return encoder.gives_up() or encoder.check(hard_texts(t.content for t in converted.added), tokenizer) or encoder


class TiktokenEncoder(FastEncoder):
    """See FastEncoder."""

    def __init__(self, bpe: ByteBPE, may_change: re.Pattern[str] | None = None):
        import tiktoken

        super().__init__(may_change or (characters_that_may_change() if bpe.is_nfc else None))
        self._bpe = bpe
        special = {token.content: token.id for token in bpe.added}
        self._separator = 1 + max([*bpe.ranks.values(), *special.values()])
        self._encoding = tiktoken.Encoding(
            "packhaul",
            pat_str=bpe.pattern,
            mergeable_ranks=bpe.ranks,
            special_tokens={**special, _SEPARATOR: self._separator},
        )
        self._lengths = np.zeros(self._separator + 1, dtype=np.int64)  # bytes of each token, by id; 0 of the separator
        for content, number in (bpe.ranks | {content.encode(): i for content, i in special.items()}).items():
            self._lengths[number] = len(content)
        self._is_plain = _is_plain(bpe.added)
        self._passes = [[t for t in bpe.added if t.normalized == normalized] for normalized in (False, True)]
        self._patterns = [_any_of(tokens) for tokens in self._passes]
        self._single_words = _any_of([t for t in bpe.added if t.single_word])

    @property
    def name(self) -> str:
        """For people and manifests."""
        return f"tiktoken {version('tiktoken')}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._bpe, self._may_change)

    def _takes(self, text: str) -> bool:
        return (text.isascii() or _SEPARATOR[0] not in text) and super()._takes(text)

    def _encode_taken(self, texts: list[str]) -> Iterator[ByteTokens | None]:
        return self._encode_joined(texts) if self._is_plain else map(self._encode_cut, texts)

    def _encode_joined(self, texts: list[str]) -> Iterator[ByteTokens | None]:
        """All texts in one call, which saves a third of the time. Nothing is merged across an added token.

        A text of two tokens (3 and 1 bytes), the separator S, which counts no bytes, and a text of one token (4 bytes):

            ids           a  b  S  c
            ends          3  4  4  8     bytes up to each token's end, in all texts together
            stops               2     4  the separators' places, and the end
            before        0  0  0  4     bytes before each token's text
            own ends      3  4  -  4
        """
        ids = self._encoding.encode_to_numpy(_SEPARATOR.join(texts), allowed_special="all", disallowed_special=())
        stops = np.append(np.flatnonzero(ids == self._separator), ids.size)
        ends = self._lengths[ids].cumsum()
        bytes_before_token = np.append(0, ends)
        first_tokens = np.append(0, stops[:-1])  # a text's own first token, or the separator before it: no bytes
        num_tokens = np.diff(stops, prepend=-1)  # of each text and the separator behind it; the last one has none
        ends -= np.repeat(bytes_before_token[first_tokens], num_tokens)[: ids.size]
        ids, start = ids.view(np.int32), 0
        for text, stop in zip(texts, stops.tolist(), strict=True):
            yield whole(text, ids[start:stop], ends[start:stop])
            start = stop + 1

    def _encode_cut(self, text: str) -> ByteTokens | None:
        cuts = self._cut(text)
        return None if cuts is None else whole(text, *self._encode_cuts(text, cuts))

    # Added tokens that take white space, want to be words, or begin alike: as AddedVocabulary in `tokenizers` does it.

    def _cut(self, text: str) -> list[Cut] | None:
        """Cut the added tokens out of the text; None if that takes knowing what a word is."""
        if self._single_words.search(text):
            return None
        cuts: list[Cut] | None = [(0, len(text), None)]
        for tokens, pattern in zip(self._passes, self._patterns, strict=True):
            by_content = {t.content: t for t in tokens}
            cuts = _cut_again(text, cuts or [], by_content, pattern)
            if cuts is None:
                return None
        return cuts

    def _encode_cuts(self, text: str, cuts: list[Cut]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.int64)]
        for start, end, number in cuts:
            if number is None:
                ids.append(self._encoding.encode_to_numpy(text[start:end], disallowed_special=()))
                lengths.append(self._lengths[ids[-1]])
            else:
                ids.append(np.array([number], dtype=np.uint32))
                lengths.append(np.array([len(text[start:end].encode())]))
        return np.concatenate(ids).view(np.int32), np.concatenate(lengths).cumsum()


def _is_plain(added: tuple[AddedToken, ...]) -> bool:
    """Whether tiktoken itself finds them rightly: it knows no flags, and no longest match."""
    contents = sorted(token.content for token in added)
    is_prefix = any(b.startswith(a) for a, b in pairwise(contents))
    has_flags = any(t.lstrip or t.rstrip or t.single_word for t in added)
    return not has_flags and not is_prefix and len({t.normalized for t in added}) < 2


def _any_of(tokens: list[AddedToken]) -> re.Pattern[str]:
    """The first, and there the longest, of the tokens."""
    longest_first = sorted((t.content for t in tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _cut_again(
    text: str, cuts: list[Cut], by_content: dict[str, AddedToken], pattern: re.Pattern[str]
) -> list[Cut] | None:
    finer: list[Cut] = []
    for start, end, number in cuts:
        pieces = [(start, end, number)] if number is not None else list(_find(text, start, end, by_content, pattern))
        if any(a[1] != b[0] for a, b in pairwise(pieces)):
            return None  # one took white space that the next begins with
        finer += pieces
    return finer


def _find(text: str, start: int, end: int, by_content: dict[str, Any], pattern: re.Pattern[str]) -> Iterator[Cut]:
    done = start
    for found in pattern.finditer(text, start, end):
        token = by_content[found[0]]
        left, right = found.span()
        if token.lstrip:
            left = max(done, done + len(text[done:left].rstrip(_SPACE)))
        if token.rstrip:
            right = end - len(text[right:end].lstrip(_SPACE))
        if done < left:
            yield done, left, None
        yield left, right, token.id
        done = right
    if done < end:
        yield done, end, None
