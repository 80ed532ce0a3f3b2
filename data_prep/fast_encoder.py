"""An exact and faster encoder for byte-level BPE tokenizers (Qwen, Llama 3, GPT-2 families): tiktoken, built from the
same vocabulary.

It is used after a proof only, made once when a run starts: the model, the pattern and the normalizer convert (see
bpe_conversion.py), the pattern's character classes hold the same characters, and the ids and the characters of each
token are equal on a hard set of texts; `check` repeats the latter on a sample of the run's own. A text that it cannot
answer for (NFC would change it, a word cannot be told, it is very long) it leaves to `tokenizers`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.encoded_text import ByteTokens, OffsetTokens
from data_prep.hard_texts import hard_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from data_prep.bpe_conversion import AddedToken, ByteBPE

# Characters. tiktoken's regex engine gives up at a million steps, which one run of spaces can take.
LONGEST_TEXT = 100_000
_SEPARATOR = "\U0010fffe\U0010ffff"  # characters that are assigned to nothing, ever
# Unicode's White_Space: what Rust calls a space, which is not quite what Python does.
_SPACE = "".join(
    map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000))
)
Cut = tuple[int, int, int | None]  # from character, to character, id of the added token, or None for text


def build(tokenizer: Tokenizer, serialised: str | None = None) -> FastEncoder | str:
    """The encoder for a tokenizer, or the reason why `tokenizers` itself has to encode.

    Args:
        serialised: the tokenizer's `to_str`, which takes a while, where it is known.
    """
    try:
        import tiktoken  # noqa: F401
    except ImportError:
        return "tiktoken is not installed"
    from data_prep.bpe_conversion import NotConvertible, convert, differing_classes

    try:
        converted = convert(tokenizer, serialised)
        differing = differing_classes(converted.pattern)
        if differing:
            return f"the regex engines do not agree on {', '.join(differing)} in the pattern of its pre-tokenizer"
        encoder = FastEncoder(converted)
    except (NotConvertible, ValueError) as reason:
        return str(reason)
    return encoder.gives_up() or encoder.check(hard_texts(t.content for t in converted.added), tokenizer) or encoder


class FastEncoder:
    """Encodes as `tokenizers` does without adding special tokens. Pickles small enough to send to a worker."""

    def __init__(self, bpe: ByteBPE, may_change: re.Pattern[str] | None = None):
        import tiktoken

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
        self._may_change = may_change or (_may_change() if bpe.is_nfc else None)

    @property
    def name(self) -> str:
        """For people and manifests."""
        return f"tiktoken {version('tiktoken')}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._bpe, self._may_change)

    def encode(self, text: str) -> ByteTokens | None:
        """The text's tokens, or None if `tokenizers` has to encode it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[ByteTokens | None]:
        """Each text's tokens, or None if `tokenizers` has to encode it."""
        if not self._is_plain:
            return [self._encode_cut(text) if self._takes(text) else None for text in texts]
        are_taken = [self._takes(text) for text in texts]
        encoded = self._encode_joined([text for text, is_taken in zip(texts, are_taken, strict=True) if is_taken])
        return [next(encoded) if is_taken else None for is_taken in are_taken]

    def _takes(self, text: str) -> bool:
        if text.isascii():
            return len(text) <= LONGEST_TEXT
        return len(text) <= LONGEST_TEXT and _SEPARATOR[0] not in text and self._is_normal(text)

    def _encode_joined(self, texts: list[str]) -> Iterator[ByteTokens | None]:
        """All texts in one call, which saves a third of the time. Nothing is merged across an added token."""
        ids = self._encoding.encode_to_numpy(_SEPARATOR.join(texts), allowed_special="all", disallowed_special=())
        stops = np.append(np.flatnonzero(ids == self._separator), ids.size)
        ends = self._lengths[ids].cumsum()
        before = np.append(0, ends)[np.append(0, stops[:-1])]  # bytes before each text: a separator has none
        sizes = np.diff(stops, prepend=-1)
        ends -= np.repeat(before, sizes)[: ids.size]
        ids, start = ids.view(np.int32), 0
        for text, stop in zip(texts, stops.tolist(), strict=True):
            yield _whole(text, ids[start:stop], ends[start:stop])
            start = stop + 1

    def check(self, texts: Iterable[str], tokenizer: Tokenizer) -> str | None:
        """The first of the texts, as part of a reason, that is encoded otherwise than by `tokenizers`; None if none."""
        texts = list(texts)
        for text, fast in zip(texts, self.encode_batch(texts), strict=True):
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

    def _is_normal(self, text: str) -> bool:
        """Whether the normalizer leaves the text as it is. Most text holds no character that it could change."""
        if self._may_change is None or not self._may_change.search(text):
            return True
        from tokenizers.normalizers import NFC

        return bool(NFC().normalize_str(text) == text)

    def _encode_cut(self, text: str) -> ByteTokens | None:
        cuts = self._cut(text)
        return None if cuts is None else _whole(text, *self._encode_cuts(text, cuts))

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


def _whole(text: str, ids: np.ndarray, ends: np.ndarray) -> ByteTokens | None:
    """The tokens, if they cover the text: the pattern may leave something out."""
    num_bytes = len(text) if text.isascii() else len(text.encode())
    return ByteTokens(text, ids, ends) if num_bytes == (ends.item(-1) if ends.size else 0) else None


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


def _may_change() -> re.Pattern[str]:
    """The characters that NFC may change, alone or with others, and those that this Python does not know.

    How a character that is once assigned normalizes never changes. One that `tokenizers` does not know it lets be.
    """
    codes = [*range(0x80, 0xD800), *range(0xE000, 0x10000)]
    second = {parts[1] for parts in map(_decomposition, codes) if len(parts) == 2}
    suspects = [
        code
        for code in codes
        if unicodedata.category(c := chr(code)) == "Cn"
        or unicodedata.combining(c)
        or c in second
        or not unicodedata.is_normalized("NFC", c)
    ]
    jamo = "\u1160-\u11ff"  # the vowels and final consonants of Hangul compose with what is before them
    # All of the other planes: `re` is slow with many ranges there.
    return re.compile(f"[{jamo}{''.join(_ranges(suspects))}\U00010000-\U0010ffff]")


def _decomposition(code: int) -> list[str]:
    found = unicodedata.decomposition(chr(code))
    return [] if found.startswith("<") else [chr(int(part, 16)) for part in found.split()]


def _ranges(codes: list[int]) -> Iterator[str]:
    first = last = codes[0]
    for code in [*codes[1:], -1]:
        if code != last + 1:
            yield f"{re.escape(chr(first))}-{re.escape(chr(last))}"
            first = code
        last = code
