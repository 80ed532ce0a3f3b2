"""A small bilingual instruction set with answers that a computer can check.

Words are made up: English-like ones alternate consonants and vowels, Korean ones are open syllables. A word's own hash
says whether it is held out, so no held-out word occurs in training, under any task, in question or answer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
INITIALS = "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ"
SYLLABLES = "가기나니다디라리마미바비사시아이자지차치카키타티파피하히"
HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Task:
    """One kind of question about a word, and the function that answers it."""

    name: str
    instruction: str
    answer: Callable[[str], str]

    @property
    def language(self) -> str:
        """`en` or `ko`."""
        return self.name[:2]


def initial_consonants(word: str) -> str:
    """The first consonant of each Korean syllable: 나무 -> ㄴㅁ."""
    return "".join(INITIALS[SYLLABLES.index(syllable) // 2] for syllable in word)


TASKS = (
    Task("en_repeat", "Repeat the word.", str),
    Task("en_upper", "Write the word in capital letters.", str.upper),
    Task("en_first", "Give the first letter of the word.", lambda word: word[0]),
    Task("en_last", "Give the last letter of the word.", lambda word: word[-1]),
    Task("en_reverse", "Write the word backwards.", lambda word: word[::-1]),
    Task("en_length", "Count the letters of the word.", lambda word: str(len(word))),
    Task("ko_repeat", "단어를 그대로 쓰세요.", str),
    Task("ko_initials", "단어의 초성을 쓰세요.", initial_consonants),
    Task("ko_first", "단어의 첫 글자를 쓰세요.", lambda word: word[0]),
    Task("ko_last", "단어의 마지막 글자를 쓰세요.", lambda word: word[-1]),
    Task("ko_reverse", "단어를 거꾸로 쓰세요.", lambda word: word[::-1]),
    Task("ko_length", "단어의 글자 수를 쓰세요.", lambda word: str(len(word))),
)
LANGUAGES = ("en", "ko")


def english_word(rng: random.Random) -> str:
    """Three to six letters, consonants and vowels in turn."""
    alphabets = itertools.cycle(rng.choice([(CONSONANTS, VOWELS), (VOWELS, CONSONANTS)]))
    return "".join(rng.choice(next(alphabets)) for _ in range(rng.randint(3, 6)))


def korean_word(rng: random.Random) -> str:
    """Two to four syllables."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))


def is_held_out(word: str) -> bool:
    """Whether the word belongs to the held-out part: the same answer on every machine, for ever.

    A word and its reverse belong together, or the answers of one part would be words of the other.
    """
    word = min(word, word[::-1])
    return hashlib.blake2b(word.encode(), digest_size=8).digest()[0] % 100 < HELD_OUT_PERCENT


def make_rows(task: Task, count: int, *, held_out: bool, seed: int) -> list[dict[str, str]]:
    """`count` rows of one task in Alpaca form, over distinct words of the training or the held-out part."""
    rng = random.Random(f"{seed} {task.name} {held_out}")
    make_word = english_word if task.language == "en" else korean_word
    words: dict[str, None] = {}  # a dict, because its order does not depend on the hash seed
    while len(words) < count:
        word = make_word(rng)
        if is_held_out(word) == held_out:
            words[word] = None
    return [_row(task, word) for word in words]


def _row(task: Task, word: str) -> dict[str, str]:
    return {"task": task.name, "instruction": task.instruction, "input": word, "output": task.answer(word)}


def write_instruction_set(folder: Path, *, train_rows: int, held_out_rows: int, seed: int = 42) -> None:
    """Write `train_en.jsonl`, `train_ko.jsonl` and `held_out.jsonl`.

    Args:
        folder: made if missing.
        train_rows: training rows for each task.
        held_out_rows: held-out rows for each task.
        seed: the same seed gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        tasks = [task for task in TASKS if task.language == language]
        rows = [row for task in tasks for row in make_rows(task, train_rows, held_out=False, seed=seed)]
        random.Random(f"{seed} {language}").shuffle(rows)
        _write_jsonl(folder / f"train_{language}.jsonl", rows)
    held_out = [row for task in TASKS for row in make_rows(task, held_out_rows, held_out=True, seed=seed)]
    _write_jsonl(folder / "held_out.jsonl", held_out)


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
