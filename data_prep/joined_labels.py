"""The labels of many texts at once: what Labeller.label does one by one, which takes as long as encoding them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from data_prep.encoded_text import ByteTokens, Span

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
        with tokens, or not with one of `end_ids`, or the text with two BOS tokens.

        Args:
            spans: the characters of each text that are trained.
            ignore: the label of what is not trained.
        """
        ids, ends = self._ids_and_ends()
        row = np.repeat(np.arange(len(spans)), [len(own) for own in spans])
        begin, end, is_inside = self._bytes(spans, row)
        first, last = ends.searchsorted(begin, "right"), ends.searchsorted(end - 1, "right")
        first, last = np.minimum(first, ids.size - 1), np.minimum(last, ids.size - 1)
        is_usual = is_inside & (np.append(0, ends)[first] == begin) & (ends[last] == end) & np.isin(ids[last], end_ids)
        change = np.zeros(ids.size + 1, dtype=np.int32)
        np.add.at(change, first[is_usual], 1)
        np.add.at(change, last[is_usual] + 1, -1)
        labels = np.where(change[:-1].cumsum() > 0, ids, np.int32(ignore))
        unusual = {*row[~is_usual].tolist(), *self._with_two(bos, ids).tolist()}
        stops = [0, *self._sizes().cumsum().tolist()]
        pairs: list[Pair | None] = [(ids[a:b], labels[a:b]) for a, b in pairwise(stops)]
        for i in unusual:
            pairs[i] = None
        return pairs

    def _sizes(self) -> np.ndarray:
        return np.array([tokens.ids.size for tokens in self.tokens])

    def _ids_and_ends(self) -> Pair:
        """(tokens,) all ids, and one past each token's last byte in the joined texts."""
        num_bytes = np.array([tokens.ends.item(-1) for tokens in self.tokens])
        before = np.repeat(num_bytes.cumsum() - num_bytes, self._sizes())
        return (
            np.concatenate([tokens.ids for tokens in self.tokens]),
            np.concatenate([tokens.ends for tokens in self.tokens]) + before,
        )

    def _bytes(self, spans: Sequence[list[Span]], row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(spans,) first and one past the last byte of each span in the joined texts, and whether it is in its text."""
        length = np.array([len(text) for text in self.texts])
        edges = np.array(list(chain.from_iterable(chain.from_iterable(spans))), dtype=np.int64).reshape(-1, 2)
        start, end = edges.T
        is_inside = (start >= 0) & (start < end) & (end <= length[row])
        edges = np.where(is_inside[:, None], edges + (length.cumsum() - length)[row, None], 0)
        joined = "".join(self.texts)
        if not joined.isascii():
            raw = np.frombuffer(joined.encode(), dtype=np.uint8)
            edges = np.append(np.flatnonzero(raw & 0xC0 != 0x80), raw.size)[edges]
        return edges[:, 0], edges[:, 1], is_inside

    def _with_two(self, bos: int | None, ids: np.ndarray) -> np.ndarray:
        """The texts that begin with two of a token, and some of one token that may."""
        starts = self._sizes().cumsum() - self._sizes()
        second = np.minimum(starts + 1, ids.size - 1)
        return np.flatnonzero((ids[starts] == bos) & (ids[second] == bos)) if bos is not None else starts[:0]
