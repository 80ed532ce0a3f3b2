"""Ids and labels of an encoded text, from the spans that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_prep.conversation import BadRow
from data_prep.rendering.batched_labels import JoinedTexts, Pair
from data_prep.rendering.rewrites import Rewrite
from data_prep.shards import IGNORE_INDEX
from data_prep.tokenization.encoded_text import ByteTokens, EncodedText, LooseSpan, Span
from data_prep.tokenization.text_encoder import TextEncoder

STRADDLING = "straddling_token"


class Turns(NamedTuple):
    """Numbers of turns of a row."""

    trained: int = 0
    with_reasoning: int = 0  # of those trained
    empty_reasoning_masked: int = 0  # of those trained: with an empty block of reasoning in the text, which is masked
    empty_reasoning_trained: int = 0  # the same, with one that is trained


NO_TURNS = Turns()


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One document. Unshifted: the model shifts."""

    input_ids: np.ndarray  # (length,) int32
    labels: np.ndarray  # (length,) int32, IGNORE_INDEX where not trained
    rewrites: tuple[Rewrite, ...] = ()  # what was changed in the raw row's texts
    turns: Turns = NO_TURNS  # of the raw row

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return int(self.input_ids.size)

    @property
    def num_trained(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels != IGNORE_INDEX).sum())


class Labeller:
    """Makes labels with one tokenizer.

    Args:
        special_ids: ids of the control tokens; one of them has to end each trained span.
        bos: id of the BOS token, if there is one.
    """

    def __init__(self, encoder: TextEncoder, special_ids: frozenset[int], bos: int | None):
        self._encoder, self._special_ids, self._bos = encoder, special_ids, bos
        self._end_ids = np.array(sorted(special_ids), dtype=np.int32)

    def label_batch(
        self, texts: Sequence[str], encoded: Sequence[EncodedText], spans: Sequence[list[Span]]
    ) -> list[TokenizedExample | BadRow]:
        """What `label` makes of each text; of those encoded byte by byte that are as usual, all at once."""
        joined = {i: tokens for i, tokens in enumerate(encoded) if isinstance(tokens, ByteTokens) and tokens.ids.size}
        pairs: dict[int, Pair | None] = {}
        if joined:
            together = JoinedTexts([texts[i] for i in joined], list(joined.values()))
            labelled = together.labels([spans[i] for i in joined], self._end_ids, self._bos, IGNORE_INDEX)
            pairs = dict(zip(joined, labelled, strict=True))
        return [
            TokenizedExample(*pair) if (pair := pairs.get(i)) else self.label(texts[i], tokens, spans[i])
            for i, tokens in enumerate(encoded)
        ]

    def label(self, text: str, tokens: EncodedText, spans: list[Span]) -> TokenizedExample | BadRow:
        """The example; a BadRow if a span does not begin and end with tokens, or does not end with an end of turn. A
        LooseSpan may begin inside a token."""
        input_ids = tokens.ids
        labels = np.full(input_ids.size, IGNORE_INDEX, dtype=np.int32)
        try:
            for span in spans:
                first, last = _token_range(tokens, span)
                last = self._end_of_turn(text, tokens, first, last)
                labels[first : last + 1] = input_ids[first : last + 1]
        except BadRow as bad:
            return bad
        if self._bos is not None and input_ids[:2].tolist() == [self._bos, self._bos]:
            return BadRow("double_bos", "the document starts with two BOS tokens")
        return TokenizedExample(input_ids, labels)

    def _end_of_turn(self, text: str, tokens: EncodedText, first: int, last: int) -> int:
        """The token that ends the turn; only white space may follow it within the marks, and that is not trained."""
        end = last
        while end > first and tokens.ids.item(end) not in self._special_ids:
            end -= 1
        rest = text[tokens.characters_of(end)[1] : tokens.characters_of(last)[1]]
        if tokens.ids.item(end) not in self._special_ids or rest.strip():
            last_ids = tokens.ids[max(first, last - 3) : last + 1].tolist()
            last_text = self._encoder.backend.decode(last_ids, skip_special_tokens=False)
            raise BadRow(
                "untrained_end",
                f"the trained text ends in {last_text!r}, not in a "
                "control token: a model trained so never stops. Put the end-of-turn token inside {% generation %}",
            )
        return end


def _token_range(tokens: EncodedText, span: Span) -> Span:
    """First and last token of the characters [start, end)."""
    start, end = span
    found = tokens.tokens_of(start, end)
    if found is None:
        raise BadRow("no_trained_tokens", f"no token begins at character {start} or ends at {end}")
    begins, ends = tokens.characters_of(found[0]), tokens.characters_of(found[1])
    is_at_start = begins[0] == start or isinstance(span, LooseSpan)
    if not is_at_start or ends[1] != end:
        raise BadRow(
            STRADDLING,
            f"a token covers characters {begins} or {ends}, but {span} is trained: the text there merges with the "
            "template's (a leading line break, say)",
        )
    return found
