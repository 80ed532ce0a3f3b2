"""Unicode's normal form C: whether it leaves a text as it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator


def is_normal(text: str, may_change: re.Pattern[str]) -> bool:
    """Whether the normalizer leaves the text as it is. Most text holds no character that it could change."""
    if text.isascii() or not may_change.search(text):
        return True
    from tokenizers.normalizers import NFC

    return bool(NFC().normalize_str(text) == text)


def characters_that_may_change() -> re.Pattern[str]:
    """The characters that NFC may change, alone or with others, and those that this Python does not know.

    How a character that is once assigned normalizes never changes. One that `tokenizers` does not know it lets be.
    """
    codes = [*range(0x80, 0xD800), *range(0xE000, 0x10000)]
    second = {parts[1] for parts in map(_decomposition, codes) if len(parts) == 2}
    suspects = [
        code
        for code in codes
        if unicodedata.category(c := chr(code)) == "Cn"
        or unicodedata.combining(c)
        or c in second
        or not unicodedata.is_normalized("NFC", c)
    ]
    jamo = "\u1160-\u11ff"  # the vowels and final consonants of Hangul compose with what is before them
    # All of the other planes: `re` is slow with many ranges there.
    return re.compile(f"[{jamo}{''.join(_ranges(suspects))}\U00010000-\U0010ffff]")


def _decomposition(code: int) -> list[str]:
    found = unicodedata.decomposition(chr(code))
    return [] if found.startswith("<") else [chr(int(part, 16)) for part in found.split()]


def _ranges(codes: list[int]) -> Iterator[str]:
    first = last = codes[0]
    for code in [*codes[1:], -1]:
        if code != last + 1:
            yield f"{re.escape(chr(first))}-{re.escape(chr(last))}"
            first = code
        last = code
