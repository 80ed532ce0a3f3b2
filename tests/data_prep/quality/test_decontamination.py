"""Rows that share text with evaluation files are found, whatever the script; set phrases and short answers are not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.conversation import Conversation, Message, ToolCall
from data_prep.quality.decontamination import Decontaminate, EvaluationIndex
from tests.support.evaluation_rows import ENGLISH, KOREAN, index_of, write
from tests.support.real_texts import rows, texts

CHINESE = "下列哪一项是一型糖尿病患者最合适的初始治疗方案？患者十二岁，体重下降并感到口渴，夜间多尿。"
JAPANESE = "次のうち一型糖尿病の患者に対する最初の治療として最も適切なものはどれか。患者は十二歳で体重が減っている。"
BEFORE, AFTER = "Please solve this for me. ", " Think step by step."


@pytest.fixture
def index(tmp_path):
    """Factory: the index of these evaluation rows."""

    def make(rows: list, name: str = "eval.jsonl", **options) -> EvaluationIndex:
        return index_of(write(tmp_path / name, rows), **options)

    return make


@pytest.mark.parametrize("question", [ENGLISH, KOREAN, CHINESE, JAPANESE])
@pytest.mark.parametrize("change", [str, str.upper, lambda t: unicodedata.normalize("NFD", t), lambda t: t + t])
def test_a_row_that_holds_an_evaluation_text_is_found(index, question, change):
    some = index([{"question": "unrelated"}, {"question": question, "answer": "9"}])
    found = some.overlap(BEFORE + change(question) + AFTER)
    assert found is not None
    assert found.endswith("eval.jsonl:2")


def test_punctuation_line_breaks_and_korean_spacing_do_not_hide_it(index):
    some = index([{"question": ENGLISH}, {"question": KOREAN}])
    assert some.overlap(ENGLISH.replace(",", "").replace(" ", "\n  ").replace("?", "!!"))
    assert some.overlap(KOREAN.replace(" ", ""))


def test_what_is_found_is_spelled_out_with_its_place(index):
    found = index([{"question": ENGLISH}]).overlap("X " + ENGLISH)
    assert found is not None
    assert found.startswith('"a farmer has 17 sheep, and all but 9 of them run away" is in ')


@pytest.mark.parametrize(
    "text",
    [
        "A farmer has 17 sheep. All but 9 of them run away in spring. Why do the sheep run away from the farmer?",
        "긍정적인 영향을 미칠 수 있습니다. 다음 중 가장 알맞은 것은 무엇인가?",
        "下列哪一项是最合适的治疗方案？",
        "",
        "9",
    ],
)
def test_less_than_a_run_is_not_enough(index, text):
    assert index([{"q": ENGLISH}, {"q": KOREAN}, {"q": CHINESE}, {"q": "9"}]).overlap(text) is None


def test_twenty_six_korean_characters_are_a_run_and_twenty_five_are_not(index):
    syllables = "".join(c for c in KOREAN if "가" <= c <= "힣")
    some = index([{"q": syllables}])
    assert some.overlap(f"문제 X {syllables[5:30]} X") is None
    assert some.overlap(f"문제 X {syllables[5:31]} X")


def test_a_korean_text_with_english_words_in_it(index):
    question = (
        "PyTorch의 DataLoader에서 num_workers를 0보다 크게 두면 Windows에서 RuntimeError가 나는 까닭과 고치는 법은?"
    )
    some = index([{"q": question}])
    assert some.overlap("질문입니다. " + question)
    assert some.overlap("num_workers를 0보다 크게 두면 빨라지나요?") is None


# Short texts.


def test_a_short_evaluation_text_is_found_as_a_whole_message_only(index):
    some = index([{"q": "What is the capital of France?"}, {"q": "프랑스의 수도는 어디인가요?"}])
    assert some.overlap("what is the capital of france") == f"the whole text is that of {some.places[0]}"
    assert some.overlap("프랑스의 수도는 어디인가요")
    assert some.overlap("What is the capital of France and of Spain?") is None


@pytest.mark.parametrize("answer", ["yes", "The answer is B", "서울", "네, 맞습니다", "12", "closed_qa"])
def test_an_answer_that_anybody_may_give_is_not_looked_for(index, answer):
    assert index([{"q": ENGLISH, "a": answer}]).overlap(answer) is None


def test_nothing_long_enough_to_look_for_is_refused(index):
    with pytest.raises(ValueError, match="no text of at least 5 words"):
        index([{"a": "yes"}])


# Options.


def test_only_the_given_columns_are_looked_at(index):
    rows = [{"question": ENGLISH, "context": KOREAN}]
    some = index(rows, columns=["question"])
    assert some.overlap(ENGLISH)
    assert some.overlap(KOREAN) is None
    assert index(rows).overlap(KOREAN)
    with pytest.raises(ValueError, match=r"column \['qestion'\]; found \['context', 'question'\]"):
        index(rows, columns=["qestion"])


def test_nested_texts_are_looked_at(index):
    assert index([{"messages": [{"role": "user", "content": ENGLISH}], "choices": {"a": 1}}]).overlap(ENGLISH)


def test_a_run_that_many_evaluation_texts_share_is_boilerplate(index):
    instruction = "Answer the following multiple choice question with one letter only, and give no explanation at all: "
    rows = [{"q": f"{instruction} {i} {ENGLISH if i == 4 else i * i}"} for i in range(20)]
    assert index(rows).overlap(instruction) is None
    assert index(rows).overlap(ENGLISH)
    assert index(rows, max_occurrences=20).overlap(instruction)
    # The same passage in many rows is one text.
    assert index([{"passage": ENGLISH, "n": str(i)} for i in range(20)]).overlap(ENGLISH)


def test_min_overlap_is_the_share_of_the_evaluation_text(index):
    words = [f"word{i}" for i in range(40)]
    rows = [{"q": " ".join(words)}]
    part = "x " + " ".join(words[5:25]) + " y"  # 20 of 40
    assert index(rows, ngram=8, min_overlap=0.51).overlap(part) is None
    found = index(rows, ngram=8, min_overlap=0.5).overlap(part)
    assert found is not None
    assert found.endswith("(50% of that text)")
    two_parts = " ".join(words[:10]) + " and " + " ".join(words[20:34])
    assert index(rows, ngram=8, min_overlap=0.6).overlap(two_parts)
    assert index(rows, ngram=8, min_overlap=0.61).overlap(two_parts) is None


@pytest.mark.parametrize("wrong", [{"files": []}, {"files": ["x"], "ngram": 0}, {"files": ["x"], "min_overlap": 2}, {}])
def test_options_are_checked(wrong):
    with pytest.raises(ValidationError):
        Decontaminate(**wrong)


# Conversations, and a slow reference.


def test_conversations_are_dropped_for_any_turn_but_the_system_prompt(index):
    def conversation(system: str, user: str, answer: str) -> Conversation:
        turns = (Message("system", system), Message("user", user), Message("assistant", answer))
        return Conversation(turns, "s", 0)

    some = index([{"q": ENGLISH}, {"q": KOREAN}])
    rows = [("x", "y", "z"), (ENGLISH, "y", "z"), ("x", ENGLISH, "z"), ("x", "y", "답: " + KOREAN)]
    bad = some.check([conversation(*row) for row in rows])
    assert [b and b.reason for b in bad] == [None, None, "contaminated", "contaminated"]
    assert bad[3] is not None
    assert bad[3].detail.endswith("eval.jsonl:2")
    assert some.check([]) == []


def naive_overlap(text: str, evaluation: list[str], n: int) -> bool:
    words = text.split()
    runs = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
    for other in evaluation:
        its = other.split()
        if any(tuple(its[i : i + n]) in runs for i in range(len(its) - n + 1)):
            return True
        if 5 <= len(its) < n and its == words:
            return True
    return False


words = st.lists(st.sampled_from(["aa", "bb", "cc"]), max_size=25).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(words, min_size=1, max_size=5), st.lists(words, max_size=6), st.integers(5, 8))
def test_the_same_as_comparing_all_runs(evaluation, training, n):
    places = dict.fromkeys([*evaluation, "aa bb cc dd ee ff"], "evaluation:1")
    some = EvaluationIndex(Decontaminate(files=["evaluation"], ngram=n), places)
    assert [f is not None for f in some.overlaps(training)] == [naive_overlap(t, evaluation, n) for t in training]
    assert [some.overlap(t) for t in training] == some.overlaps(training)


def test_real_rows_are_found_in_their_own_set_and_korean_sets_do_not_overlap(shared_data):
    korean = shared_data / "text" / "ko"
    some = index_of(korean / "koalpaca_v1.1_medical_1908.jsonl", columns=["question"])
    own = [row["question"] for row in rows(korean / "koalpaca_v1.1_medical_1908.jsonl")]
    assert all(some.overlaps([f"질문: {q} 답을 써 주세요." for q in own if sum(c.isalnum() for c in q) > 40]))
    assert all(some.overlaps([q for q in own if sum(c.isalnum() for c in q) > 10]))
    assert not any(some.overlaps(texts(korean / "koalpaca_v1_11432.json")))
    assert not any(some.overlaps(texts(korean / "songys_chatbot_11823.csv")))


@pytest.mark.parametrize("more", [{"reasoning": ENGLISH}, {"tool_calls": (ToolCall("f", {"a": [{"b": ENGLISH}]}),)}])
def test_thoughts_and_the_arguments_of_calls_are_looked_at_too(index, more):
    row = Conversation((Message("user", "Hi"), Message("assistant", "Hello", **more)), "s", 0)
    assert index([{"question": ENGLISH}]).check([row])[0] is not None
