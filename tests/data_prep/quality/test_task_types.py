"""Task types: each kind in English and Korean, what must not mislead, and agreement with human labels."""

from __future__ import annotations

import json

import pytest

from data_prep.conversation import Conversation, Message
from data_prep.quality.task_types import TASK_TYPES, classify, classify_text
from tests.benchmarks.task_type_accuracy import agreement, dolly, hand_labelled, logickor

EXAMPLES = {
    "explanation": [
        "Why is the sky blue?",
        "What is the capital of France?",
        "List three uses of copper.",
        "Describe the structure of an atom.",
        "머신러닝과 딥러닝의 차이를 설명하라.",
        "제1형 당뇨병은 어떻게 치료하나요?",
        "온실 효과의 원인 세 가지를 나열하십시오.",
    ],
    "generation": [
        "Write a short story about a robot who learns to paint.",
        "Suggest five slogans for a bakery.",
        "Give me three ideas for a birthday party.",
        "Translate the following sentence into French.\n\nI like tea.",
        "Rewrite the sentence so that it sounds positive.",
        "가을을 주제로 한 하이쿠를 지어라.",
        "아래 문장을 더 공손한 어조로 바꿔 주세요.\n\n빨리 와.",
        "새 카페의 홍보 문구를 제안해 주세요.",
    ],
    "summarisation": [
        "Summarize the following article in two sentences.",
        "What are the key points of this passage?",
        "다음 뉴스 기사를 3문장으로 요약하라.",
    ],
    "reasoning": [
        "Calculate the area of a circle with radius 4.",
        "If a train covers 120 km in 2 hours, how far does it go in 5 hours at 60 km/h?",
        "What comes next in the sequence: 2, 4, 8, 16?",
        "저는 사과 12개가 있었는데, 친구에게 절반을 나눠줬어요. 남은 사과는 몇 개인가요?",
        "두 공의 색깔이 같을 확률은?",
    ],
    "classification": [
        "Classify the sentence as positive, negative or neutral.",
        "Identify which instrument is string or percussion: Kecer, Saz",
        "Is the statement true or false?",
        "다음 문장의 감정을 긍정 또는 부정으로 분류하세요.",
        "다음 중 알맞은 것을 고르시오.",
    ],
    "coding": [
        "Write a Python function that reverses a list.",
        "Create an SQL query that finds all customers from Korea.",
        "React로 간단한 투두 리스트 컴포넌트 코드를 작성하라.",
        "배열에서 중복을 감지하는 함수를 작성하세요.",
        "What does this do?\n\ndef f(x):\n    return x + 1",
    ],
    "dialogue": ["Hi, how are you?", "What is your name?", "안녕! 반가워", "오늘 너무 힘들다 ㅠㅠ"],
    "other": ["Bioinformatics", "Las estrellas brillan de noche."],
}


@pytest.mark.parametrize(("expected", "question"), [(t, q) for t, questions in EXAMPLES.items() for q in questions])
def test_each_kind(expected, question):
    assert TASK_TYPES[classify_text(question)] == expected


def test_every_type_has_examples():
    assert set(EXAMPLES) == set(TASK_TYPES)


@pytest.mark.parametrize(
    ("question", "answer", "num_questions", "expected"),
    [
        ("Print the numbers up to ten.", "```python\nprint(*range(11))\n```", 1, "coding"),  # the answer tells
        ("In the design of bridges, what matters most?", "", 1, "explanation"),  # after an article, a noun
        ("The weather changes. " * 20 + "\nWho wrote this?", "", 1, "explanation"),  # the question follows a long text
        ("Rivers of Asia", "", 3, "dialogue"),  # no task's words, but it goes on
        ("Rivers of Asia", "", 1, "other"),
        ("¿Cuál es la capital de Francia?", "", 1, "explanation"),  # another language, but a question
        ("Translate the sentence.\n\nHello, how are you?", "", 1, "generation"),
        ("Phrase of the day\n\nHello, how are you?", "", 1, "other"),  # what follows may sound like talk
        ("", "", 0, "other"),
    ],
)
def test_what_must_not_mislead(question, answer, num_questions, expected):
    assert TASK_TYPES[classify_text(question, answer, num_questions)] == expected


def test_a_conversation_is_judged_by_its_first_question():
    turns = [("system", "You are a poet."), ("user", "Why do cats purr?"), ("assistant", "Many reasons.")]
    more = [("user", "Write a poem."), ("assistant", "Purr, purr.")]
    messages = tuple(Message(role, text) for role, text in turns + more)
    assert TASK_TYPES[classify(Conversation(messages, "s", 0))] == "explanation"


def test_odd_text_is_classified_all_the_same():
    for text in ("\x00", "\ud800", "?" * 100_000, "\n" * 1000, "가" * 100_000, "a" * 100_000, "{\n" * 5000):
        assert 0 <= classify_text(text, text, 1) < len(TASK_TYPES)


def test_agreement_with_human_labels(shared_data):
    text = shared_data / "text"
    assert agreement(list(dolly(text / "en/dolly_12_full_columns.json")))["accuracy"] >= 0.9
    assert agreement(list(logickor(text / "ko/logickor_42_messages.jsonl")))["accuracy"] >= 0.65
    alpaca = dict(hand_labelled("alpaca", text / "en/alpaca_52k.json"))
    koalpaca = dict(hand_labelled("koalpaca", text / "ko/koalpaca_v1_11432.json"))
    assert agreement(alpaca["alpaca_fresh"])["accuracy"] >= 0.78
    assert agreement(koalpaca["koalpaca_fresh"])["accuracy"] >= 0.7


def test_kinds_of_whole_sets(shared_data):
    def share(questions, name):
        found = [TASK_TYPES[classify_text(q)] for q in questions]
        return found.count(name) / len(found)

    medquad = [json.loads(s)["question"] for s in (shared_data / "text/med/medquad_nih.jsonl").open(encoding="utf-8")]
    assert share(medquad, "explanation") > 0.95
    songys = (shared_data / "text/ko/songys_chatbot_11823.csv").read_text(encoding="utf-8").splitlines()[1:2001]
    assert share([line.split(",")[0] for line in songys], "dialogue") > 0.65
