"""Texts in several scripts, and what near duplicates are found in them."""

from __future__ import annotations

import itertools

from data_prep.quality.near_duplicates import (
    NearDuplicates,
    border_signatures,
    find_near_duplicates,
    signatures,
)
from data_prep.quality.shingles import shingle_hashes, tokenize

DEFAULT = NearDuplicates()


ENGLISH = (
    "Explain how vaccines work and why some of them need a second dose after a few weeks. A vaccine shows the immune "
    "system a harmless part of a virus, so that it learns to recognise the virus before a real infection. The first "
    "dose primes the memory cells; the second one, some weeks later, makes them many more and their answer much "
    "faster, which is why protection is far better and lasts far longer after it than after the first one alone."
)


KOREAN = (
    "제2형 당뇨병 환자는 식사를 어떻게 해야 하나요? 당뇨병 환자는 규칙적인 시간에 알맞은 양을 골고루 드시는 것이 "
    "좋습니다. 흰쌀밥보다는 잡곡밥을 드시고, 채소와 단백질을 먼저 드신 뒤 탄수화물을 드시면 혈당이 천천히 오릅니다. "
    "단 음료와 과자는 피하세요."
)


CHINESE = (
    "糖尿病患者应该怎样饮食？糖尿病患者应当定时定量进餐，少吃精白米面，多吃蔬菜和优质蛋白质，避免含糖饮料和糕点，"
    "同时坚持每天散步半小时。"
)


JAPANESE = (
    "風邪をひいたときはどうすればいいですか。水分を十分にとり、暖かくしてゆっくり休んでください。"
    "熱が高いときは医師に相談しましょう。"
)


RAINBOW = "The colors of the rainbow are red, orange, yellow, green, blue, indigo, and violet."


THAI = "ผู้ป่วยเบาหวานควรรับประทานอาหารอย่างไร ควรรับประทานอาหารให้ตรงเวลาและหลีกเลี่ยงเครื่องดื่มที่มีน้ำตาล"


def duplicates(documents: list[str], options: NearDuplicates = DEFAULT) -> list[int]:
    """For each text, the first one of its cluster, or -1."""
    border = border_signatures(documents, options)
    return find_near_duplicates(signatures(documents, options), options, border).tolist()


def shingle_sets(documents: list[str], options: NearDuplicates = DEFAULT) -> list[frozenset[int]]:
    """The hashed shingles of each text."""
    tokens = tokenize(documents, keep_punctuation=True, characters_below=options.short)
    hashes, starts = shingle_hashes(tokens, options.shingle)
    return [frozenset(hashes[a:b].tolist()) for a, b in itertools.pairwise(starts)]


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Their similarity."""
    return len(a & b) / len(a | b)
