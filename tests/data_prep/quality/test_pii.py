"""E-mail addresses and phone numbers are masked; dates, identifiers and other numbers are not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.conversation import Conversation, Message, ToolCall
from data_prep.quality.pii import mask, mask_conversation
from tests.support.real_texts import texts

BOTH = frozenset({"email", "phone"})


def listed(text: str) -> list[str]:
    return text.strip().replace("\n", "|").split("|")


PHONES = listed("""
010-1234-5678|010.1234.5678|010 1234 5678|010 - 1234 - 5678|01012345678|010-12345678|011-234-5678|0162345678|02-123-4567
02-1234-5678|02)1234-5678|(02)1234-5678|(02) 123-4567|02 123 4567|031-123-4567|070-1234-5678|0505-123-4567
+82 10-1234-5678|+82-10-1234-5678|+821012345678|+82 2 123 4567|+82 (0)10 1234 5678|+82-(0)2-123-4567|+82-02-123-4567
+12125550123|+1 (212) 555-0123|(212) 555-0123|(212)555-0123|212-555-0123|212.555.0123|1-800-555-0123|1 (888) 998-6325
+44 20 7946 0958|+44 (0)20 7946 0958|+4908374100427|+33 1 23 45 67 89|0033 1 23 45 67 89|+358401234567|+81-90-1234-5678
+86 138 1234 5678|138-1234-5678|090-1234-5678|03-1234-5678|０１０－１２３４－５６７８|010–1234–5678
""")
OTHER_NUMBERS = listed("""
2023-01-02|2023.01.02|01-02-2023|02.03.2024|2023년 1월 2일|1998-2004|1592-1598|1588-1234|1877-1881|2:30-3:45|100-200-300
192.168.100.123|128.178.163.54|86.0.4240.111|978-0-306-40615-7|0-306-40615-2|978-89-01-12345-6|979-11-123-4567-8
ISBN 0-19-852663-6|1,234,567,890|10,000,000원|$1,000,000|3.14159265358979|0.86602540430|+10|+3.5%|+1000000000
5 + 12345678|1234567890|2147483648|15000000000|0123456789|0101011000|01011000011|12345678901234567890
20230101123456|x01012345678
901010-1234567|123-45-67890|110-123-456789|4242-4242-4242-4242|4242 4242 4242 4242|550e8400-e29b-41d4-a716-446655440000
10.1038/s41586-020-2649-2|0000-0002-1825-0097|0.010-1234-5678|010-1234-5678-9012|212.555.0123.4
2023-010-1234-5678|1 2 3 4 5 6 7 8 9 10
""")


@pytest.mark.parametrize("number", PHONES)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("전화번호는 ", "입니다."), ("번호", "로"), ("call ", ", or")])
def test_phone_numbers_are_masked(number, before, after):
    assert mask(before + number + after, BOTH) == (f"{before}[PHONE]{after}", 1)


@pytest.mark.parametrize("number", OTHER_NUMBERS)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("값은 ", "입니다."), ("(", ")"), ("on ", ".")])
def test_other_numbers_are_not(number, before, after):
    assert mask(before + number + after, BOTH) == (before + number + after, 0)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("홍길동 hong.gildong@naver.com으로 보내 주세요", "홍길동 [EMAIL]으로 보내 주세요"),
        ("이메일:abc_1@gmail.com,def@daum.co.kr.", "이메일:[EMAIL],[EMAIL]."),
        ("<x+y@mail.example.org> mailto:Foo@EXAMPLE.COM?subject", "<[EMAIL]> mailto:[EMAIL]?subject"),
        ("abc＠naver．com user@한국.kr", "[EMAIL] [EMAIL]"),
        ("01012345678@naver.com", "[EMAIL]"),
        ("logo@2x.png @app.route user@host root@10.0.0.1 A@B.T 12@34.56 @naver.com", None),
    ],
)
def test_addresses(text, masked):
    assert mask(text, BOTH)[0] == (text if masked is None else masked)


def test_lists_of_numbers_and_what_follows_them():
    text = "010-1234-5678,010-2222-3333/02-123-4567~8, +44 20 7946 0958 2023년 +49 89 123456. 12명"
    assert mask(text, BOTH) == ("[PHONE],[PHONE]/[PHONE]~8, [PHONE] 2023년 [PHONE]. 12명", 5)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Phone: 18009143017 or 7315545283 Fax: 7315545283", "Phone: [PHONE] or [PHONE] Fax: [PHONE]"),
        (
            "Tel. 5550123, telephone number 12345678. TEL:025550123",
            "Tel. [PHONE], telephone number [PHONE]. TEL:[PHONE]",
        ),
        ("전화: 025550123, 전화번호는 15881234, 팩스 0255501234", "전화: [PHONE], 전화번호는 [PHONE], 팩스 [PHONE]"),
        ("Cell phone no. 7035246686", "Cell phone no. [PHONE]"),
        ("phone_number = 4442345678", None),
        ("The hotel 1234567 and motel 12345678", None),
        ("Telephones 12345678", None),
        ("a phone of 12345678 won, Phone: 123456, Fax: 1234567890123456", None),
        ("Phone: 12345678ab, phone 12345678.5, Tel 1234567-8", None),
    ],
)
def test_bare_digits_are_masked_after_a_word_for_a_telephone(text, masked):
    assert mask(text, BOTH)[0] == (text if masked is None else masked)


def test_only_the_kinds_asked_for():
    text = "a@b.com 010-1234-5678"
    assert mask(text, frozenset({"email"})) == ("[EMAIL] 010-1234-5678", 1)
    assert mask(text, frozenset({"phone"})) == ("a@b.com [PHONE]", 1)
    assert mask(text, frozenset()) == (text, 0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["010-", "1234", "5678", "a@b", ".com", "+82", " ", "-", "(", ")", "한", "０", "@", "."]))
)
def test_masking_twice_changes_nothing_more(pieces):
    once, count = mask("".join(pieces), BOTH)
    assert mask(once, BOTH) == (once, 0)
    assert once.count("[EMAIL]") + once.count("[PHONE]") == count


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.sampled_from(PHONES), st.text(max_size=30))
def test_the_rest_of_the_text_stays(before, number, after):
    masked, _ = mask(f"{before} / {number} / {after}", BOTH)
    assert "[PHONE]" in masked
    assert mask(before + " / ", BOTH)[1] or masked.startswith(before + " / ")


def test_a_conversation_is_masked_everywhere_and_counted():
    call = ToolCall("send", {"to": ["a@b.com", 3, {"tel": "010-1234-5678"}], "n": None})
    messages = (
        Message("user", "제 번호는 010-1234-5678"),
        Message("assistant", "네", reasoning="메일은 x@y.com", tool_calls=(call,), train=True),
    )
    masked, count = mask_conversation(Conversation(messages, "s", 7), BOTH)
    assert count == 4
    assert masked.messages[0].content == "제 번호는 [PHONE]"
    assert (masked.messages[1].reasoning, masked.messages[1].train) == ("메일은 [EMAIL]", True)
    assert masked.messages[1].tool_calls[0].arguments == {"to": ["[EMAIL]", 3, {"tel": "[PHONE]"}], "n": None}
    assert (masked.source, masked.row) == ("s", 7)
    untouched = Conversation((Message("user", "2023-01-02"),), "s", 0)
    assert mask_conversation(untouched, BOTH) == (untouched, 0)


@pytest.mark.parametrize("piece", ["0", "0-", "+1 ", "a@", "a.", "(02", "b@c.", "+82", "@", "+44 1", "1-"])
def test_no_text_takes_more_than_a_moment(piece):
    started = time.process_time()
    mask("a@" + piece * 50_000, BOTH)
    assert time.process_time() - started < 2  # it takes 0.03 s; a pattern that backtracks takes minutes


@pytest.mark.parametrize(
    ("file", "addresses", "numbers"),
    [
        ("ko/koalpaca_v1_11432.json", 17, 5),
        ("ko/koalpaca_v1.1_medical_1908.jsonl", 0, 2),
        ("ko/songys_chatbot_11823.csv", 0, 0),
        ("med/medical_meadow_5942.json", 4, 5),
        ("en/alpaca_52k.json", 96, 29),
    ],
)
def test_real_texts(shared_data, file, addresses, numbers):
    """Every match in these files was read and is an address or a number; a new one has to be read too."""
    counts = [
        mask(text, frozenset({kind})) for kind in ("email", "phone") for text in texts(shared_data / "text" / file)
    ]
    assert sum(n for _, n in counts) == addresses + numbers
    assert sum(text.count("[PHONE]") for text, _ in counts) == numbers
