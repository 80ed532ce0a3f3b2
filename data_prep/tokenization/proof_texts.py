"""Texts that show any difference between two encoders; the faster ones are proven on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

_SPACES = (
    "",
    " ",
    "  ",
    "   ",
    "\t",
    " \t ",
    "\n",
    "\n\n",
    " \n",
    "\n ",
    "\r\n",
    "\r\n\r\n  ",
    "\u00a0",
    "\u3000",
    "\u2028",
)
_WORDS = (
    # contractions, accents composed and not, other scripts, case
    "Hello don't DON'T we'LL've'd 's x'ſ it’s naïve café cafe\u0301 Å\u030a \u212b ﬁn İstanbul ǅ Straße ΑΣ русский "
    "עברית ﷺ हिन्दी ไทย 日本語 漢字かな交じり文 한국어 문장입니다. "
    # Hangul letters, marks to be composed or put in order, characters of other normal forms
    "\u1112\u1161\u11ab\u1100\u116e\u11a8 가\u11a8 ᄒᆞᆫ글 \u0958 a\u0323\u0307 a\u0307\u0323 \u1e9b\u0323 "
    "q\u0307\u0323\u0301 \u2126\u212a e\u200d\u0301 "
    # emoji, other planes, unassigned and private characters, control characters
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇰🇷🇺🇸 ❤️ \U0001d49c \U0002f81a \U00020000 \U000e0061 \U000f0000 \ue000 \ufffd \ufeff \u0378 "
    "\U0001fae9 \u1df6\u0301 \x00 \x01\x7f \x1b[31m \x1c\x1d\x85 "
    # digits and signs
    "123 12345678901234567890 3.14159 1,000,000 １２３ ٣٤٥ ½ ²³ Ⅷ 0x1F !!! ... --- ===== ##### !? $%^& ()[]{} \\n «» "
    "— … a_b snake_case_name CamelCaseName HTTPServer2 x=1;y=2 http://example.com/a?b=c&d=%20#e "
    "user@example.com C:\\path\\file /usr/bin/env #!/bin/sh <br/> <|im_end| <| |> \u200b\u200b\u200b ᄀᄀᄀ"
)
_LONG = [
    part * 150 for part in ("a", "ab", "the", "가", "😀", "z\u0301", "-", "=", "1", "\u200b", "ᄀ", "a1", "!a", "xyzzy")
]
_CODE = (
    "def f(x):\n    if x > 0:\n\t\treturn {'a': [1, 2, 3]}  # comment\n\n\n    return None\n",
    'for (int i = 0; i < 10; ++i) {\r\n  printf("%d\\n", i);\r\n}\r\n',
    '{"key": "value", "n": [1.5e-10, null, true]}\n',
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "x" + " " * 40 + "y" + "\n" * 20 + "z" + "\t" * 30 + " \n \n  \n",
    " leading and trailing \n",
    "a\n b\n  c\n   d\n",
    "I'm you're he'd we've they'll it's I'M YOU'RE HE'D WE'VE THEY'LL IT'S '' 'x ''s",
)
_SOME = (
    "Hello",
    "don't",
    "한국어",
    "漢字",
    "é",
    "e\u0301",
    "12345",
    "!?",
    "😀",
    "\u0301",
    "\u11a8",
    "'s",
    "_",
    "ﬁ",
    "\x00",
)


def hard_texts(tokens: Iterable[str] = ()) -> Iterator[str]:
    """About 2,000 short texts. `tokens` are the tokenizer's own added tokens; some are mixed in."""
    words = _WORDS.split(" ")
    yield from ("", *_SPACES, *words, *_LONG, *_CODE)
    for space in _SPACES[1:]:
        yield from (space + word + space for word in words)
        yield from (a + space + b for a, b in zip(_SOME, reversed(_SOME), strict=True))
    for a in _SOME:
        yield "".join(a + b for b in _SOME)
        yield " ".join(b + a for b in _SOME)
    yield from _around(list(tokens))


def _around(tokens: list[str]) -> Iterator[str]:
    chosen = list(dict.fromkeys([*tokens[:4], *tokens[-4:], *sorted(tokens, key=len)[:4]]))
    for token, other in zip(chosen, reversed(chosen), strict=True):
        yield from (a + token + b for a in (*_SOME, *_SPACES[1:]) for b in ("", "a", " b", "\u0301", "\n", "  "))
        yield from (token + other, token + " " + other, token * 3, token[:-1], token[1:], token[:-1] + other)


def texts_of_all_characters() -> Iterator[str]:
    """Each character of the first two planes, and every 61st of the others, which hold long uniform blocks: next to a
    letter, a digit and a space, before and after it."""
    codes = list(chain(range(0xD800), range(0xE000, 0x20000), range(0x20000, 0x110000, 61)))
    for start in range(0, len(codes), 32):
        yield "".join(f"{c}x{c}1{c} " for c in map(chr, codes[start : start + 32]))


def long_texts() -> Iterator[str]:
    """Texts that begin alike for thousands of characters and part where a word, a number or white space would go on."""
    start = " ".join(_WORDS.split(" ")[:14]) * 30 + "\n"
    ends = ("x", " ", "\n", "\tx", "'s", "'x", "s", "1", "é", "\u0301", "")
    for middle in (" " * 700, "\n" * 50, "x" * 1500, "1" * 300, "don", "!" * 100):
        yield from (start + middle + end + " The end." * (len(end) % 2) for end in ends)
    for size in (20_000, 70_000):
        yield "".join(f"{start[i : i + 60]} {i}{_SPACES[i % len(_SPACES)] * 9}" for i in range(size // 100))
