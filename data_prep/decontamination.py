"""Decontamination: find the training rows that share text with given evaluation files.

As GPT-3 did it (Brown et al. 2020, appendix C): lower case, no punctuation, runs of 13 words; a training row that has
one such run in common with an evaluation text is contaminated. Runs that many evaluation texts share are boilerplate
and do not count. With `min_overlap` it is the rule of open-instruct (Lambert et al. 2024, Tulu 3: runs of 8, one half):
the runs found have to cover that share of the evaluation text. Scripts without spaces, and Korean, are taken by
characters: runs of 13 of them are set phrases, runs of 26 say as much as 13 words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_prep.conversation import BadRow, Conversation, nested_strings
from data_prep.shingles import Tokens, mix_bits, offsets, text_hashes, tokenize

if TYPE_CHECKING:
    from data_prep.recipe import Source

_TEXTS_PER_CALL = 2048
_BASE = 0x9E3779B97F4A7C15
_LINES = frozenset({".txt", ".text"})  # one text per line


class Decontaminate(BaseModel):
    """The recipe's `decontaminate`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    files: Annotated[tuple[str, ...], Field(min_length=1)]  # JSON, JSONL or text; globs and $VARIABLES are expanded
    columns: tuple[str, ...] | None = None  # of the evaluation rows; all strings in the row if not given
    ngram: Annotated[int, Field(ge=5)] = 13  # words in a row
    characters_per_word: Annotated[int, Field(ge=1)] = 2  # so many Korean, Chinese, Japanese, ... ones count as a word
    min_overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # share of the evaluation text that has to be found
    # An evaluation text shorter than a run is looked for as a whole message, if it is not as short as "yes".
    min_words: Annotated[int, Field(ge=1)] = 5
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
    """The runs of all evaluation texts, sorted by hash. Built once per process and options by `evaluation_index`."""

    def __init__(self, options: Decontaminate):
        """Read the files.

        Raises:
            ValueError: a file or a column that is not there, a row that cannot be read, or nothing long enough to look
                for.
        """
        self.options = options
        places = _distinct_texts(options)
        self.places = list(places.values())  # where each evaluation text is found first, such as "gsm8k.jsonl:17"
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
        found: list[str | None] = [None] * len(texts)
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
        places = np.searchsorted(self._runs.hashes, runs.hashes)
        shared = runs[self._runs.hashes[np.minimum(places, self._runs.hashes.size - 1)] == runs.hashes]
        numbers, starts = np.unique(shared.text, return_index=True)  # a text's runs lie together
        for number, start, end in zip(numbers, starts, np.append(starts, shared.text.size)[1:], strict=True):
            mine = shared[slice(start, end)]
            other, share, which = self._best(mine.hashes)
            if share >= self.options.min_overlap:
                spelled = tokens.spelled(int(tokens.starts[number] + mine.first[which]), int(mine.length[which]))
                detail = f'"{spelled}" is in {self.places[other]}'
                yield int(number), detail + (f" ({share:.0%} of that text)" if self.options.min_overlap else "")

    def _best(self, hashes: np.ndarray) -> tuple[int, float, int]:
        """The evaluation text of which these runs cover the most: its number, the share, and its first run here."""
        left, right = (np.searchsorted(self._runs.hashes, hashes, side=side) for side in ("left", "right"))
        if not self.options.min_overlap:
            return int(self._runs.text[left[0]]), 1.0, 0
        which = np.repeat(np.arange(hashes.size), right - left)
        entries = self._runs[np.concatenate([np.arange(a, b) for a, b in zip(left, right, strict=True)])]
        best = (-1, -1.0, 0)
        for other in np.unique(entries.text):
            mine = entries.text == other
            ranges = zip(entries.first[mine], entries.length[mine], strict=True)
            covered = len({token for first, length in ranges for token in range(first, first + length)})
            best = max(best, (int(other), covered / int(self._counts[other]), int(which[mine][0])), key=lambda b: b[1])
        return best


@lru_cache(maxsize=2)
def evaluation_index(options: Decontaminate) -> EvaluationIndex:
    """The index of these options, built once per process."""
    return EvaluationIndex(options)


def evaluation_identity(options: Decontaminate) -> list[dict[str, Any]]:
    """What the evaluation files are, JSON-able: rows checked against other files must not be reused."""
    from data_prep.readers import source_identity

    return source_identity(_source(list(options.files)))


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
    words = np.diff(_weights(tokens, options)[tokens.starts]) / options.characters_per_word
    short = np.flatnonzero((words < options.ngram) & (words >= options.min_words))
    whole = zip(text_hashes(tokens)[short].tolist(), (short + first_number).tolist(), strict=True)
    return tokens.counts, _Runs(runs.hashes, runs.text + np.int32(first_number), runs.first, runs.length), list(whole)


def _weights(tokens: Tokens, options: Decontaminate) -> np.ndarray:
    """(tokens + 1,) int64: the tokens before each one, a character counting 1 and a word `characters_per_word`."""
    return offsets(np.where(tokens.is_character, 1, options.characters_per_word))


def _runs(tokens: Tokens, options: Decontaminate) -> _Runs:
    """From each token on, as many tokens as make up `ngram` words, where the text has them."""
    weights = _weights(tokens, options)
    ends = np.searchsorted(weights, weights[:-1] + options.ngram * options.characters_per_word)
    text = np.repeat(np.arange(tokens.counts.size), tokens.counts)
    place = np.arange(text.size) - tokens.starts[text]
    first = np.flatnonzero(ends <= tokens.starts[text + 1])
    ends, text = ends[first], text[first]
    # A polynomial in the token hashes, from prefix sums: odd numbers have inverses modulo 2^64.
    longest = int(place.max(initial=0)) + 1
    sums = offsets(tokens.hashes * _powers(_BASE, longest)[place])
    hashes = mix_bits((sums[ends] - sums[first]) * _powers(pow(_BASE, -1, 1 << 64), longest)[place[first]])
    return _Runs(hashes, *(x.astype(np.int32) for x in (text, place[first], ends - first)))


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
    # Equal runs come in ascending order of their texts, so each text's first mention differs from the one before.
    new = np.ones(order.size, dtype=np.int64)
    new[1:] = (runs.hashes[1:] != runs.hashes[:-1]) | (runs.text[1:] != runs.text[:-1])
    group = np.searchsorted(runs.hashes, runs.hashes)
    texts = np.bincount(group, weights=new, minlength=order.size)[group]
    return runs[texts <= options.max_occurrences]


# The evaluation files.


def _distinct_texts(options: Decontaminate) -> dict[str, str]:
    """Each different text of the evaluation rows, and where it is found first."""
    places: dict[str, str] = {}
    seen: set[str] = set()
    for where, row in _evaluation_rows(options):
        if isinstance(row, BadRow):
            raise ValueError(f"decontaminate: {where}: {row}: an evaluation file has to be read in full; repair it")
        if isinstance(row, dict) and options.columns is not None:
            seen |= row.keys()
            row = [row.get(column) for column in options.columns]
        for text in nested_strings(row, keys=False):
            places.setdefault(text, where)
    missing = sorted(set(options.columns or ()) - seen)
    if missing and seen:
        raise ValueError(f"decontaminate: no row of {list(options.files)} has a column {missing}; found {sorted(seen)}")
    return places


def _source(paths: list[str]) -> Source:
    from data_prep.recipe import Source  # late: the recipe imports this module

    return Source(name="evaluation", path=paths, form="messages")  # the form is that of conversations: not used here


def _evaluation_rows(options: Decontaminate) -> Iterator[tuple[str, Any]]:
    """(where, row) of all rows and lines."""
    from data_prep.readers import read_slice, slice_source, source_files

    try:
        files = source_files(_source(list(options.files)))
        texts = [f for f in files if isinstance(f, Path) and f.suffix.lower() in _LINES]
        for path in texts:
            yield from _lines(path)
        others = [str(f) for f in files if f not in texts]
        for piece in slice_source(_source(others), 10_000) if others else []:
            yield from ((row.where, row.value) for row in read_slice(_source(others), piece))
    except ValueError as error:
        raise ValueError(f"decontaminate: {error}") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    yield from ((f"{path}:{number}", line) for number, line in enumerate(lines, 1))
