"""Near duplicates: signatures estimate the Jaccard index, clusters are those of all pairs compared one by one."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.conversation import Conversation, Message, ToolCall
from data_prep.quality import near_duplicates
from data_prep.quality.near_duplicates import (
    Border,
    NearDuplicates,
    border_signatures,
    cluster_ids,
    conversation_text,
    find_near_duplicates,
    signatures,
)
from tests.conftest import ROOT
from tests.support.real_texts import texts
from tests.support.similar_texts import (
    CHINESE,
    DEFAULT,
    ENGLISH,
    JAPANESE,
    KOREAN,
    RAINBOW,
    THAI,
    duplicates,
    jaccard,
    shingle_sets,
)

# Signatures.


def test_signatures_estimate_the_jaccard_index():
    random = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(5000)]
    errors = []
    for size in (60, 200, 800):
        for changed in (0.0, 0.01, 0.03, 0.1):
            words = random.choice(vocabulary, (20, size))
            others = np.where(random.random((20, size)) < changed, random.choice(vocabulary, (20, size)), words)
            pair = [[" ".join(w) for w in rows] for rows in (words, others)]
            exact = [jaccard(a, b) for a, b in zip(*map(shingle_sets, pair), strict=True)]
            agree = (signatures(pair[0], DEFAULT) == signatures(pair[1], DEFAULT)).mean(axis=1)
            errors += list((agree - 1 / 256) / (1 - 1 / 256) - exact)
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.045  # sqrt(J (1 - J) / 128) is at most 0.044
    assert np.abs(errors).max() < 0.2


def digest(**environment: str) -> str:
    code = (
        "import hashlib, sys; from tests.data_prep.quality.test_near_duplicates import *\n"
        "print(hashlib.sha256(signatures([ENGLISH, KOREAN, CHINESE, 'short', ENGLISH * 40], DEFAULT)).hexdigest())"
    )
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_signatures_are_equal_in_all_processes_and_on_all_processors():
    here = hashlib.sha256(signatures([ENGLISH, KOREAN, CHINESE, "short", ENGLISH * 40], DEFAULT)).hexdigest()
    # A new version of the library with other signatures: parts made before it must not be mixed with later ones.
    assert here == "59fcee6d98b70dadf5163cd4ff6fb245f28a7c2f153106025c8b9f2167b820f4"
    assert digest(PYTHONHASHSEED="1", RAYON_NUM_THREADS="1") == here
    assert digest(PYTHONHASHSEED="2", RENSA_FORCE_KERNEL="scalar") == here


# Clusters.


def slow_clusters(rows: np.ndarray, threshold: float) -> list[int]:
    agree = (rows[:, None, :] == rows[None, :, :]).mean(axis=2)
    similar = (agree - 1 / 256) / (1 - 1 / 256) >= threshold - 1e-9
    clusters = list(range(len(rows)))
    for _ in range(len(rows)):
        clusters = [min(clusters[j] for j in np.flatnonzero(similar[i])) for i in range(len(rows))]
    return clusters


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]), st.sampled_from([16, 64, 128]))
def test_clusters_are_those_of_all_pairs(seed, threshold, num_perm):
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (60, num_perm), dtype=np.uint8)
    for i in range(1, 60):  # most are copies of an earlier one with some bytes changed
        rows[i] = rows[random.integers(0, i)]
        changed = random.random(num_perm) < random.choice([0.0, 0.02, 0.1, 0.6, 1.0])
        rows[i, changed] = random.integers(0, 256, changed.sum())
    options = NearDuplicates(threshold=threshold, num_perm=num_perm)
    expected, found = slow_clusters(rows, threshold), cluster_ids(rows, options).tolist()
    # Hashing finds a pair right at the threshold with probability 0.995: nothing is joined wrongly, little is missed.
    assert all(expected[i] == expected[c] for i, c in enumerate(found))
    assert sum(a != b for a, b in zip(expected, found, strict=True)) <= 3


def test_a_chain_of_similar_documents_is_one_cluster_named_by_its_first():
    random = np.random.default_rng(3)
    rows = np.empty((40, 128), dtype=np.uint8)
    rows[0] = random.integers(0, 256, 128)
    for i in range(1, 40):
        rows[i] = rows[i - 1]
        rows[i, random.choice(128, 6, replace=False)] = random.integers(0, 256, 6)
    shuffled = rows[random.permutation(40)]
    assert (shuffled[0] == shuffled[-1]).mean() < 0.8  # alone these two are not similar
    assert cluster_ids(shuffled, DEFAULT).tolist() == [0] * 40
    assert find_near_duplicates(shuffled, DEFAULT).tolist() == [-1] + [0] * 39


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=4), max_size=20))
def test_pairs_joined_in_any_order_make_the_same_clusters(batches):
    clusters, slow = np.arange(20), list(range(20))
    for pairs in batches:
        left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        near_duplicates.unite(clusters, left, right)
        for a, b in pairs:
            slow = [min(slow[a], slow[b]) if c in (slow[a], slow[b]) else c for c in slow]
    assert near_duplicates.roots(clusters, np.arange(20)).tolist() == slow


def test_a_long_path_leads_to_its_first_document():
    clusters = np.arange(50)
    for i in range(48, -1, -1):  # each pair makes the path from the last document one longer
        near_duplicates.unite(clusters, np.array([i]), np.array([i + 1]))
    assert near_duplicates.roots(clusters, np.array([49, 30, 0])).tolist() == [0, 0, 0]


def test_a_large_cluster_is_found_whole_and_in_a_moment():
    random = np.random.default_rng(0)
    base = random.integers(0, 256, 128, dtype=np.uint8)
    rows = np.where(random.random((3000, 128)) < 0.05, random.integers(0, 256, (3000, 128), dtype=np.uint8), base)
    assert (cluster_ids(rows, DEFAULT) == 0).all()


def test_no_documents_and_one_document():
    assert cluster_ids(signatures([], DEFAULT), DEFAULT).tolist() == []
    assert duplicates(["a"]) == [-1]


# Texts.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ENGLISH, ENGLISH.replace("a few weeks", "several weeks")),
        (KOREAN, KOREAN.replace("규칙적인", "정해진")),
        (KOREAN, KOREAN.replace("좋습니다", "좋아요")),
        (CHINESE, CHINESE.replace("半小时", "一小时")),
        (JAPANESE, JAPANESE.replace("ゆっくり", "")),
        (THAI, THAI + "ครับ"),
        (f"Name the colors of the rainbow.\n{RAINBOW}", f"List the colors in the rainbow.\n{RAINBOW}"),
        (
            "감기약 종류 좀 알려주세요.\n해열제와 진통제가 있습니다.",
            "감기약종류 좀 알려 주세요.\n해열제와 진통제가 있습니다",
        ),
    ],
)
def test_near_duplicates_are_found(first, second):
    documents = [first, "unrelated text about the weather in spring", second]
    assert duplicates(documents, NearDuplicates(threshold=0.7)) == [-1, -1, 0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ENGLISH, KOREAN),
        ("What is 15 + 4?\n19", "What is 15 - 4?\n11"),
        ("What is the capital of France?\nParis", "What is the capital of Spain?\nMadrid"),
        ("프랑스의 수도는 어디인가요?\n파리입니다.", "스페인의 수도는 어디인가요?\n마드리드입니다."),
        ("首都是哪里？法国的首都是巴黎。", "首都是哪里？西班牙的首都是马德里。"),
    ],
)
def test_texts_that_differ_are_not(first, second):
    assert duplicates([first, second]) == [-1, -1]


def test_the_first_document_is_kept_whichever_source_it_is_from():
    a, b = ENGLISH, KOREAN
    assert duplicates([a, b, "x", b, a, a]) == [-1, -1, -1, 1, 0, 0]


def numbered(first: int, count: int) -> str:
    return " ".join(f"word{i}" for i in range(first, first + count))


@pytest.mark.parametrize(("short", "longer"), [(49, 50), (48, 55), (46, 50), (49, 58)])
def test_a_short_text_and_one_a_little_longer_are_compared_by_characters(short, longer):
    documents = [numbered(0, longer), KOREAN, numbered(0, short), numbered(500, 300)]
    assert jaccard(*shingle_sets([documents[0], documents[2]])) == 0  # by words and by characters
    assert jaccard(*shingle_sets([documents[0], documents[2]], NearDuplicates(short=100))) > 0.83
    assert duplicates(documents) == [-1, -1, 0, -1]
    assert duplicates(documents[::-1]) == [-1, -1, -1, 1]


def test_second_signatures_are_those_of_texts_at_the_border_and_join_no_two_of_them():
    documents = [numbered(0, 40), numbered(0, 50), numbered(100, 68), numbered(200, 70), numbered(300, 90)]
    assert border_signatures(documents, DEFAULT).of.tolist() == [1, 2]
    assert border_signatures([], DEFAULT).of.size == border_signatures(["", "a"], DEFAULT).of.size == 0
    # By words unlike, by characters alike: both are long enough to be taken by words, which they are.
    words = ENGLISH.split()[:60]
    spelt = [" ".join(words), " ".join(f"{word}s" if i in (10, 30, 50) else word for i, word in enumerate(words))]
    by_words, by_characters = (shingle_sets(spelt, NearDuplicates(short=short)) for short in (50, 100))
    assert jaccard(*by_words) < 0.7 and jaccard(*by_characters) > 0.9
    assert duplicates(spelt) == [-1, -1]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_clusters_with_second_signatures_are_those_of_all_pairs(seed):
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (40, 64), dtype=np.uint8)
    for i in range(1, 40):
        rows[i] = rows[random.integers(0, i)]
        changed = random.random(64) < random.choice([0.0, 0.03, 0.6, 1.0])
        rows[i, changed] = random.integers(0, 256, changed.sum())
    of = np.sort(random.choice(30, 10, replace=False))
    options = NearDuplicates(num_perm=64)
    found = cluster_ids(rows[:30], options, Border(of, rows[30:])).tolist()
    owner = [*range(30), *of.tolist()]
    clusters = list(range(30))
    for _ in range(30):
        for i, j in itertools.combinations(range(40), 2):
            agree = ((rows[i] == rows[j]).mean() - 1 / 256) / (1 - 1 / 256)
            if agree >= 0.8 - 1e-9 and not (j >= 30 and i >= 30 and agree < 1):  # equal second ones are one row
                a, b = clusters[owner[i]], clusters[owner[j]]
                clusters = [min(a, b) if c in (a, b) else c for c in clusters]
    assert all(clusters[i] == clusters[c] for i, c in enumerate(found))
    assert sum(a != b for a, b in zip(clusters, found, strict=True)) <= 3


def test_a_shared_system_prompt_does_not_make_conversations_similar():
    def text(question: str, **more) -> str:
        turns = (Message("system", ENGLISH), Message("user", question), Message("assistant", "네", **more))
        return conversation_text(Conversation(turns, "s", 0))

    assert text("감기약 추천") == "감기약 추천\n네"
    call = ToolCall("search", {"b": 1, "a": "감기"})
    assert text("?", reasoning="생각", tool_calls=(call,)) == '?\n생각\n네\n["search", {"a": "감기", "b": 1}]'


@pytest.mark.parametrize("wrong", [{"threshold": 0.3}, {"threshold": 1.5}, {"num_perm": 0}, {"treshold": 0.8}])
def test_options_are_checked(wrong):
    with pytest.raises(ValidationError):
        NearDuplicates(**wrong)


# Real data.


@pytest.mark.parametrize(
    ("file", "exact"),
    [("med/medical_meadow_5942.json", 92), ("ko/songys_chatbot_11823.csv", 73)],
)
def test_real_exact_duplicates_are_all_found_and_pairs_are_similar(shared_data, file, exact):
    documents = texts(shared_data / "text" / file)
    found = np.array(duplicates(documents))
    first = {}
    copies = [i for i, text in enumerate(documents) if first.setdefault(text, i) != i]
    assert len(copies) == exact
    assert (found[copies] >= 0).all()
    both, near = [shingle_sets(documents, NearDuplicates(short=n)) for n in (50, 70)], np.flatnonzero(found >= 0)
    assert near.size > exact
    similar = [max(jaccard(sets[i], sets[found[i]]) for sets in both) for i in near]
    assert np.mean(np.array(similar) >= 0.7) > 0.95  # the others are joined through a third document
    assert min(similar) > 0.2


def test_real_near_duplicates_across_the_border_of_short_texts(shared_data):
    documents = texts(shared_data / "text/med/medical_meadow_5942.json")
    found = duplicates(documents)
    assert [found[i] for i in (720, 4143, 4935)] == [403, 4100, 1854]


def test_real_near_duplicates_of_alpaca(shared_data):
    documents = texts(shared_data / "text" / "en" / "alpaca_52k.json")
    found = duplicates(documents)
    pairs = {(documents[j].split("\n")[0], documents[i].split("\n")[0]) for i, j in enumerate(found) if j >= 0}
    assert ("Name the colors of the rainbow.", "List the colors in the rainbow.") in pairs
    assert ("Generate a funny joke.", "Make up a funny joke.") in pairs
    assert len(pairs) < 20  # of 52,002
