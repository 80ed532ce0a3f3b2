"""Tokenizers of whole words."""

from __future__ import annotations

import pytest

from tests.support.word_tokenizer import MORE_SPECIAL, THOUGHTS, make_word_tokenizer


@pytest.fixture(scope="module")
def word_tokenizer():
    return make_word_tokenizer([], [])


@pytest.fixture(scope="module")
def wider_tokenizer():
    return make_word_tokenizer(MORE_SPECIAL, THOUGHTS)
