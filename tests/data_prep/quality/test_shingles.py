"""Shingles: runs of words or characters, the same as those of a plain implementation, whatever the company."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.quality.near_duplicates import (
    NearDuplicates,
    signatures,
)
from tests.support.similar_texts import (
    CHINESE,
    DEFAULT,
    ENGLISH,
    JAPANESE,
    KOREAN,
    THAI,
    duplicates,
    shingle_sets,
)


def test_shingles_are_runs_of_words_or_of_characters():
    words = NearDuplicates(short=0)
    assert len(shingle_sets(["one two three four five six seven"], words)[0]) == 3
    assert shingle_sets(["one two three four five"], words) == shingle_sets(["  One TWO\tthree\nfour  five "], words)
    assert len(shingle_sets(["감기약 추천해 주세요"], words)[0]) == 9 - 4  # by syllables: spaces do not matter
    assert len(shingle_sets(["one two three"])[0]) == 11 - 4  # a short text: by characters
    assert len(shingle_sets(["감기", "", " \n"])[0]) == 1


@pytest.mark.parametrize("text", [ENGLISH, KOREAN, CHINESE, JAPANESE, THAI])
def test_writing_it_otherwise_makes_no_difference(text):
    variants = [
        text,
        text.upper(),
        f"\n {text.replace(' ', '  ')}\t",
        unicodedata.normalize("NFD", text),  # Korean as its letters, as some systems write it
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),  # full-width letters
    ]
    assert duplicates(variants) == [-1, 0, 0, 0, 0]


def test_korean_without_its_spaces_is_the_same():
    assert duplicates([KOREAN, KOREAN.replace(" ", "")]) == [-1, 0]


def naive_shingles(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "C", "dd", "e1", "f-", ";"]), max_size=12), min_size=1, max_size=6))
def test_shingles_are_those_of_a_plain_implementation(documents):
    texts = [" ".join(words) for words in documents]
    fast = shingle_sets(texts, NearDuplicates(short=0, shingle=3))
    slow = [naive_shingles(text, 3) for text in texts]
    for i in range(len(texts)):
        assert len(fast[i]) == len(slow[i])
        for j in range(i):
            assert len(fast[i] & fast[j]) == len(slow[i] & slow[j])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_a_text_has_the_same_signature_in_any_company(documents):
    together = signatures(documents, DEFAULT)
    assert together.shape == (len(documents), 128)
    for text, row in zip(documents, together, strict=True):
        assert (signatures([text], DEFAULT)[0] == row).all()
