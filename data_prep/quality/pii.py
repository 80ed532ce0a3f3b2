"""Personal data in text: e-mail addresses and phone numbers, replaced by [EMAIL] and [PHONE].

Phone numbers are those in international form (+82 10-1234-5678), national ones with separators (010-1234-5678,
02)123-4567, (212) 555-0123), Korean mobile numbers without, and any digits that follow a word such as Phone, Tel, Fax
or 전화. Left alone, since other numbers look the same: other digits without separators (identifiers, amounts), and
groups that years and ranges have too (1588-1234).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal

from data_prep.conversation import Conversation, Message

Kind = Literal["email", "phone"]

# Patterns are searched in a copy of the same length whose full-width characters, dashes and spaces are plain ones.
_PLAIN = (
    {0xFF01 + i: 0x21 + i for i in range(94)}
    | dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0xFE58, 0xFE63], ord("-"))
    | dict.fromkeys([0xA0, 0x202F, 0x3000, *range(0x2000, 0x200B)], ord(" "))
)
_NOT_PLAIN = re.compile(f"[{''.join(map(chr, _PLAIN))}]")
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?"
    r"@(?![0-9]x\.(?:png|jpe?g|gif|webp|svg)\b)"  # logo@2x.png
    rf"(?:{_LABEL}\.)+[A-Za-z]{{2,24}}(?![A-Za-z0-9])"
)
# Not inside a longer number, word or chain of numbers such as an ISBN, an IP address or a date.
_BEFORE, _AFTER = r"(?<![A-Za-z0-9+])(?<![0-9][-.])", r"(?![A-Za-z0-9])(?![-.][0-9])"
_DASH = r" ?[-.] ?"
_GAP = rf"(?:{_DASH}| )"
_COUNTRY_CODE = (  # ITU-T E.164, without +1 and +82, whose numbers have a known length
    r"(?:7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[146]|9[0-58]|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[0578]|9[679])[0-9])"
)
_KOREAN_AREA = r"0(?:2|1[016-9]|[3-6][1-5]|[78]0|50[2-8])"
_PHONES = (
    # +82 10-1234-5678, +82-(0)2-123-4567, +821012345678
    rf"\+82{_GAP}?(?:\(0\)|0)?{_GAP}?(?:2|1[016-9]|[3-6][1-5]|[78]0|50[2-8]){_GAP}?[0-9]{{3,4}}{_GAP}?[0-9]{{4}}",
    # +1 (212) 555-0123
    rf"\+1{_GAP}?(?:\([2-9][0-9]{{2}}\)|[2-9][0-9]{{2}}){_GAP}?[0-9]{{3}}{_GAP}?[0-9]{{4}}",
    # +44 20 7946 0958, +49 (0)89 123456, 0033 1 23 45 67 89; at most 15 digits
    rf"(?:\+|00(?=[0-9]{{1,3}}[ .-])){_COUNTRY_CODE}"
    r"(?:(?:[ .()-]|[ .-]\(|\)[ .-])?[0-9]){6,12}",
    # 010-1234-5678, 02)123-4567, (031) 123 4567
    rf"(?:\({_KOREAN_AREA}\) ?|{_KOREAN_AREA}(?:{_GAP}|\) ?))[0-9]{{3,4}}{_GAP}[0-9]{{4}}",
    # 010-12345678, 01012345678; not a number of zeros and ones only
    r"(?![01-]+(?![0-9-]))(?:010-?[0-9]{8}|01[16-9]-?[0-9]{7,8})",
    # 03-1234-5678, (020) 7946-0958: other countries' numbers that begin with 0
    r"(?:\(0[1-9][0-9]{0,2}\) ?|0[1-9][0-9]{0,2}-)[0-9]{3,4}-[0-9]{4}",
    # (212) 555-0123, 1-800-555-0123, 212.555.0123; 138-1234-5678
    rf"(?:1{_GAP})?(?:\([2-9][0-9]{{2}}\) ?|[2-9][0-9]{{2}}{_DASH})[0-9]{{3}}{_DASH}[0-9]{{4}}",
    r"1[3-9][0-9]-[0-9]{4}-[0-9]{4}",
)
_PHONE = re.compile(rf"{_BEFORE}(?:{'|'.join(_PHONES)}){_AFTER}")
# Phone: 18005550123 or 7315550123; Tel. 5550123; 전화번호 025550123
_NAMED = re.compile(
    r"(?:(?<![A-Za-z0-9_])(?i:(?:tele|cell ?)?phone|tel|(?:tele)?fax|mobile|tty)(?![A-Za-z_])|전화|팩스|휴대폰|핸드폰)"
    r" ?(?i:number|no|번호)?[.:은는]{0,2}[ \t]{0,3}"
    r"(?P<numbers>[0-9]{7,15}(?:(?: ?[,/] ?| or | and | 또는 )[0-9]{7,15})*)"
    rf"{_AFTER}"
)
_DIGITS = re.compile(r"[0-9]+")
_PATTERNS: tuple[tuple[Kind, re.Pattern[str], str], ...] = (
    ("email", _EMAIL, "[EMAIL]"),
    ("phone", _PHONE, "[PHONE]"),
    ("phone", _NAMED, "[PHONE]"),
)
_PHONE_LIKE = re.compile(r"[0-9](?:[^0-9]{0,3}[0-9]){6}")  # every phone number has it, most texts have not


def mask(text: str, kinds: frozenset[Kind]) -> tuple[str, int]:
    """The text with each address and number replaced, and how many they were."""
    if not kinds:
        return text, 0
    spans = sorted(_spans(text, kinds))
    parts, end = [], 0
    for start, stop, label in spans:
        parts += [text[end:start], label]
        end = stop
    return "".join([*parts, text[end:]]), len(spans)


def mask_conversation(conversation: Conversation, kinds: frozenset[Kind]) -> tuple[Conversation, int]:
    """All contents, reasoning and tool calls masked; and how many addresses and numbers they held."""
    masked = [_mask_message(m, kinds) for m in conversation.messages]
    count = sum(number for _, number in masked)
    return (replace(conversation, messages=tuple(m for m, _ in masked)), count) if count else (conversation, 0)


def mask_value(value: Any, kinds: frozenset[Kind]) -> tuple[Any, int]:
    """A JSON value, its strings masked; and how many addresses and numbers they held."""
    if not kinds:
        return value, 0
    if isinstance(value, str):
        return mask(value, kinds)
    if isinstance(value, dict):
        items = list(map(partial(mask_value, kinds=kinds), value.values()))
        return dict(zip(value, (item for item, _ in items), strict=True)), sum(number for _, number in items)
    if isinstance(value, list):
        items = list(map(partial(mask_value, kinds=kinds), value))
        return [item for item, _ in items], sum(number for _, number in items)
    return value, 0


def _spans(text: str, kinds: frozenset[Kind]) -> Iterator[tuple[int, int, str]]:
    plain = text.translate(_PLAIN) if _NOT_PLAIN.search(text) else text
    for kind, pattern, label in _PATTERNS:
        if kind not in kinds or not ("@" in plain if kind == "email" else _PHONE_LIKE.search(plain)):
            continue
        if pattern is _NAMED:
            named = (_DIGITS.finditer(plain, *m.span("numbers")) for m in pattern.finditer(plain))
            yield from ((*m.span(), label) for m in chain.from_iterable(named))
            continue
        yield from ((*m.span(), label) for m in pattern.finditer(plain))
        plain = pattern.sub(lambda m: "@" * len(m[0]), plain)  # what is an address is not a number too


def _mask_message(message: Message, kinds: frozenset[Kind]) -> tuple[Message, int]:
    content, count = mask(message.content, kinds)
    reasoning, more = mask(message.reasoning, kinds) if message.reasoning else (message.reasoning, 0)
    calls = [(call, mask_value(call.arguments, kinds)) for call in message.tool_calls]
    tool_calls = tuple(replace(call, arguments=arguments) for call, (arguments, _) in calls)
    count += more + sum(number for _, (_, number) in calls)
    return replace(message, content=content, reasoning=reasoning, tool_calls=tool_calls), count
