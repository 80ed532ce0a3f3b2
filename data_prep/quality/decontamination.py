"""Decontamination: finds the training rows that share text with evaluation texts.

As GPT-3 did it (Brown et al. 2020, appendix C): lower case, no punctuation, runs of 13 words; a training row that has
one such run in common with an evaluation text is contaminated. Runs that many evaluation texts share are boilerplate
and do not count. With `min_overlap` it is the rule of open-instruct (Lambert et al. 2024, Tulu 3: runs of 8, one half):
the runs found have to cover that share of the evaluation text. Scripts without spaces, and Korean, are taken by
characters: runs of 13 of them are set phrases, runs of 26 say as much as 13 words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_prep.conversation import BadRow, Conversation
from data_prep.quality.shingles import Tokens, mix_bits, offsets, text_hashes, tokenize

_TEXTS_PER_CALL = 2048
_BASE = 0x9E3779B97F4A7C15


class Decontaminate(BaseModel):
    """The recipe's `decontaminate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    files: Annotated[tuple[str, ...], Field(min_length=1)]  # JSON, JSONL or text; globs and $VARIABLES are expanded
    columns: tuple[str, ...] | None = None  # of the evaluation rows; all strings in the row if not given
    ngram: Annotated[int, Field(ge=5)] = 13  # words in a row
    characters_per_word: Annotated[int, Field(ge=1)] = 2  # Korean, Chinese, Japanese, ... ones that count as a word
    min_overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # share of the evaluation text that has to be found
    # An evaluation text shorter than a run is looked for as a whole message, if it is not as short as "yes".
    min_words: Annotated[int, Field(ge=1)] = 5  # of an evaluation text that is looked for
    max_occurrences: Annotated[int, Field(ge=1)] = 10  # a run in more different evaluation texts is boilerplate

    @field_validator("files", "columns", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of tokens: (runs,) arrays."""

    hashes: np.ndarray  # uint64
    text: np.ndarray  # int32, the number of the text it is in
    first: np.ndarray  # int32, the run's first token in the text
    length: np.ndarray  # int32, tokens

    def __getitem__(self, chosen: np.ndarray | slice) -> _Runs:
        return _Runs(self.hashes[chosen], self.text[chosen], self.first[chosen], self.length[chosen])


class EvaluationIndex:
    """The runs of all evaluation texts, sorted by hash.

    Args:
        places: each different evaluation text, and where it is found first, such as "gsm8k.jsonl:17".

    Raises:
        ValueError: nothing is long enough to look for.
    """

    def __init__(self, options: Decontaminate, places: Mapping[str, str]):
        self.options = options
        self.places = list(places.values())
        chunks = [_index(texts, first, options) for first, texts in _chunks(list(places))]
        self._counts = np.concatenate([counts for counts, _, _ in chunks] or [np.zeros(0, np.int64)])
        self._runs = _without_boilerplate([runs for _, runs, _ in chunks], options)
        self._whole = dict(pair for _, _, whole in chunks for pair in whole)  # hash of a short text: its number
        if not self._runs.hashes.size and not self._whole:
            raise ValueError(
                f"decontaminate: no text of at least {options.min_words} words in {list(options.files)} "
                f"(columns: {list(options.columns) if options.columns else 'all'}): nothing to look for"
            )

    def overlap(self, text: str) -> str | None:
        """The first run that `text` shares with an evaluation text, and where that is from; None if there is none."""
        return self.overlaps([text])[0]

    def overlaps(self, texts: list[str]) -> list[str | None]:
        """`overlap` of many texts, in one pass over arrays: several times as fast."""
        return [found for _, some in _chunks(texts) for found in self._overlaps(some)]

    def check(self, conversations: list[Conversation]) -> list[BadRow | None]:
        """For each conversation, why it cannot be used ("contaminated"), or None. System prompts are not looked at."""
        texts = [[text for m in c.messages if m.role != "system" for text in m.texts()] for c in conversations]
        found = iter(self.overlaps([text for some in texts for text in some]))
        hits = [[hit for _ in some if (hit := next(found))] for some in texts]
        return [BadRow("contaminated", some[0]) if some else None for some in hits]

    def _overlaps(self, texts: list[str]) -> list[str | None]:
        tokens = tokenize(texts, keep_punctuation=False)
        found: list[str | None] = [None for _ in texts]
        for number, key in enumerate(text_hashes(tokens).tolist()):
            if key in self._whole:
                found[number] = f"the whole text is that of {self.places[self._whole[key]]}"
        for number, detail in self._shared_runs(tokens):
            found[number] = found[number] or detail
        return found

    def _shared_runs(self, tokens: Tokens) -> Iterator[tuple[int, str]]:
        """(text, detail) of each text that has enough runs in common with an evaluation text."""
        if not self._runs.hashes.size:
            return
        runs = _runs(tokens, self.options)
        nearest = np.searchsorted(self._runs.hashes, runs.hashes)
        nearest = np.minimum(nearest, self._runs.hashes.size - 1)
        shared = runs[self._runs.hashes[nearest] == runs.hashes]
        # A text's runs lie together.
        numbers, starts = np.unique(shared.text, return_index=True)
        ends = np.append(starts, shared.text.size)[1:]
        for number, start, end in zip(numbers, starts, ends, strict=True):
            mine = shared[slice(start, end)]
            other, share, which = self._best(mine.hashes)
            if share >= self.options.min_overlap:
                first_token = int(tokens.starts[number] + mine.first[which])
                spelled = tokens.spelled(first_token, int(mine.length[which]))
                how_much = f" ({share:.0%} of that text)" if self.options.min_overlap else ""
                yield int(number), f'"{spelled}" is in {self.places[other]}{how_much}'

    def _best(self, hashes: np.ndarray) -> tuple[int, float, int]:
        """The evaluation text that these runs cover most: its number, the share, and which of the runs is its first."""
        left, right = (np.searchsorted(self._runs.hashes, hashes, side=side) for side in ("left", "right"))
        if not self.options.min_overlap:
            return int(self._runs.text[left[0]]), 1.0, 0
        # A run may be in several evaluation texts: entries left to right of the index.
        which = np.repeat(np.arange(hashes.size), right - left)
        entries = self._runs[np.concatenate([np.arange(a, b) for a, b in zip(left, right, strict=True)])]
        best = (-1, -1.0, 0)
        for other in np.unique(entries.text):
            mine = entries.text == other
            ranges = zip(entries.first[mine], entries.length[mine], strict=True)
            covered = {token for first, length in ranges for token in range(first, first + length)}
            share = len(covered) / int(self._counts[other])
            if share > best[1]:
                best = (int(other), share, int(which[mine][0]))
        return best


# The index.


def _chunks(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        yield start, texts[start : start + _TEXTS_PER_CALL]


def _index(
    texts: list[str], first_number: int, options: Decontaminate
) -> tuple[np.ndarray, _Runs, list[tuple[int, int]]]:
    """Tokens of each text; their runs; (hash, number) of the texts that are shorter than a run."""
    tokens = tokenize(texts, keep_punctuation=False)
    runs = _runs(tokens, options)
    weight_of_text = np.diff(_weights(tokens, options)[tokens.starts])
    words = weight_of_text / options.characters_per_word
    short = np.flatnonzero((words < options.ngram) & (words >= options.min_words))
    whole = zip(text_hashes(tokens)[short].tolist(), (short + first_number).tolist(), strict=True)
    return tokens.counts, _Runs(runs.hashes, runs.text + np.int32(first_number), runs.first, runs.length), list(whole)


def _weights(tokens: Tokens, options: Decontaminate) -> np.ndarray:
    """(tokens + 1,) int64: the tokens before each one, a character counting 1 and a word `characters_per_word`."""
    return offsets(np.where(tokens.is_character, 1, options.characters_per_word))


def _runs(tokens: Tokens, options: Decontaminate) -> _Runs:
    """From each token on, as many tokens as make up `ngram` words, where the text has them.

    Words a b c (weight 2 each) and two texts, "a b" and "c a b"; ngram 2, so a run weighs 4:

        token      a  b | c  a  b
        weights    0  2   4  6  8  10   tokens before each one, and in all, in the unit of one character
        end        2  3   4  5  -       the first token that is no longer needed: where weights reach 4 more
        text       0  0   1  1  1
        place      0  1   0  1  2       in its own text
        first      0      2  3          those whose run ends within their own text: "a b", "c a", "a b"

    A run's hash is a polynomial of its tokens' hashes h, by their place in the run: h0 + h1 B + h2 B^2 ... The sums
    over a whole text have B to the power of the place in the text, so a run's part of them is divided by B to the power
    of its first place. Odd numbers have inverses modulo 2^64.
    """
    weights = _weights(tokens, options)
    end = np.searchsorted(weights, weights[:-1] + options.ngram * options.characters_per_word)
    text = np.repeat(np.arange(tokens.counts.size), tokens.counts)
    place = np.arange(text.size) - tokens.starts[text]
    end_of_text = tokens.starts[text + 1]
    first = np.flatnonzero(end <= end_of_text)
    end, text, first_place = end[first], text[first], place[first]
    longest = int(place.max(initial=0)) + 1
    sums = offsets(tokens.hashes * _powers(_BASE, longest)[place])
    inverse_powers = _powers(pow(_BASE, -1, 1 << 64), longest)
    hashes = mix_bits((sums[end] - sums[first]) * inverse_powers[first_place])
    return _Runs(hashes, *(x.astype(np.int32) for x in (text, first_place, end - first)))


def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _without_boilerplate(chunks: list[_Runs], options: Decontaminate) -> _Runs:
    """All runs sorted by hash, without those in too many texts."""
    hashes, text, first, length = (
        np.concatenate([getattr(c, name) for c in chunks]) if chunks else np.zeros(0, np.uint64)
        for name in ("hashes", "text", "first", "length")
    )
    order = np.argsort(hashes, kind="stable")
    runs = _Runs(hashes, text, first, length)[order]
    # Equal runs come in ascending order of their texts, so a text's first mention differs from the run before it.
    is_first_in_text = np.ones(order.size, dtype=np.int64)
    is_first_in_text[1:] = (runs.hashes[1:] != runs.hashes[:-1]) | (runs.text[1:] != runs.text[:-1])
    first_equal = np.searchsorted(runs.hashes, runs.hashes)
    num_texts = np.bincount(first_equal, weights=is_first_in_text, minlength=order.size)[first_equal]
    return runs[num_texts <= options.max_occurrences]
