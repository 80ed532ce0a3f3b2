"""Labels of many texts at once, equal to those of Labeller.label, which takes as long as encoding the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from data_prep.tokenization.encoded_text import ByteTokens, Span

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class JoinedTexts:
    """Texts that were encoded byte by byte, one after the other.

    Args:
        texts: each of one token at least.
        tokens: theirs.
    """

    texts: Sequence[str]
    tokens: Sequence[ByteTokens]

    def labels(
        self, spans: Sequence[list[Span]], end_ids: np.ndarray, bos: int | None, ignore: int
    ) -> list[Pair | None]:
        """Each text's ids and labels, (length,) int32; None where it takes a closer look: a span does not begin and end
        with tokens, or does not end with one of `end_ids`, or the text begins with two BOS tokens.

        Args:
            spans: the characters of each text that are trained.
            ignore: the label of what is not trained.

        Texts "Hi.E" and "YesE"; ".E" and "YesE" are trained (E, the end of a turn, is one byte here):

            tokens        Hi  .   E | Yes E
            ends          2   3   4   7   8     bytes of all texts up to each token's end
            starts        0   2   3   4   7
            span 1        bytes 2 to 4: first token 1, last token 2
            span 2        bytes 4 to 8: first token 3, last token 4
            depth         0   1   1   1   1     spans open at each token: where it is above 0, the label is the id
        """
        ids, ends = self._ids_and_ends()
        text_of_span = np.repeat(np.arange(len(spans)), [len(own) for own in spans])
        begin, end, is_inside = self._bytes(spans, text_of_span)
        first, last = self._token_at(begin, ends), self._token_at(end - 1, ends)
        starts = np.append(0, ends)
        begins_with_token, ends_with_token = starts[first] == begin, ends[last] == end
        is_usual = is_inside & begins_with_token & ends_with_token & np.isin(ids[last], end_ids)
        labels = np.where(_is_covered(first[is_usual], last[is_usual], ids.size), ids, np.int32(ignore))
        unusual = {*text_of_span[~is_usual].tolist(), *self._may_begin_with_two(bos, ids).tolist()}
        stops = [0, *self._sizes().cumsum().tolist()]
        pairs: list[Pair | None] = [(ids[a:b], labels[a:b]) for a, b in pairwise(stops)]
        for i in unusual:
            pairs[i] = None
        return pairs

    @staticmethod
    def _token_at(byte: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The token that holds each byte; the last one where there is none."""
        return np.minimum(ends.searchsorted(byte, "right"), ends.size - 1)

    def _sizes(self) -> np.ndarray:
        return np.array([tokens.ids.size for tokens in self.tokens])

    def _ids_and_ends(self) -> Pair:
        """(tokens,) all ids, and one past each token's last byte in the joined texts."""
        num_bytes = np.array([tokens.ends.item(-1) for tokens in self.tokens])
        bytes_before_text = num_bytes.cumsum() - num_bytes
        ids = np.concatenate([tokens.ids for tokens in self.tokens])
        ends = np.concatenate([tokens.ends for tokens in self.tokens])
        return ids, ends + np.repeat(bytes_before_text, self._sizes())

    def _bytes(
        self, spans: Sequence[list[Span]], text_of_span: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(spans,) first and one past the last byte of each span in the joined texts, and whether it is in its text."""
        num_characters = np.array([len(text) for text in self.texts])
        characters_before_text = num_characters.cumsum() - num_characters
        edges = np.array(list(chain.from_iterable(chain.from_iterable(spans))), dtype=np.int64).reshape(-1, 2)
        start, end = edges.T
        is_inside = (start >= 0) & (start < end) & (end <= num_characters[text_of_span])
        edges = np.where(is_inside[:, None], edges + characters_before_text[text_of_span, None], 0)
        joined = "".join(self.texts)
        if not joined.isascii():
            raw = np.frombuffer(joined.encode(), dtype=np.uint8)
            byte_of_character = np.append(np.flatnonzero(raw & 0xC0 != 0x80), raw.size)
            edges = byte_of_character[edges]
        return edges[:, 0], edges[:, 1], is_inside

    def _may_begin_with_two(self, bos: int | None, ids: np.ndarray) -> np.ndarray:
        """Texts starting with two BOS tokens. May include some texts of one token, which are looked at again."""
        first = self._sizes().cumsum() - self._sizes()
        if bos is None:
            return first[:0]
        second = np.minimum(first + 1, ids.size - 1)
        return np.flatnonzero((ids[first] == bos) & (ids[second] == bos))


def _is_covered(first: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    """(size,) bool: whether a position lies in one of the ranges from first to last."""
    change = np.zeros(size + 1, dtype=np.int32)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    depth = change[:-1].cumsum()
    return depth > 0
