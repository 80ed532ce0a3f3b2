"""README.ko.md says what README.md says: the same headings, commands, code, figures and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.markdown import ROOT, read

ENGLISH, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"
FIRST_LINES = 5


def text_of(path: Path) -> str:
    """The prose, without the line that leads to the other language."""
    lines = [line.text for line in read(path)[0]]
    return "\n".join(line for line in lines if "README" not in line)


def headings(path: Path) -> list[int]:
    """Their levels."""
    return [len(found) for found in re.findall(r"^(#+) ", text_of(path), re.MULTILINE)]


def code(path: Path) -> list[tuple[str, str]]:
    """The fenced blocks by language, without their comments."""
    blocks = [(block.language, block.text) for block in read(path)[1]]
    return [(kind, text if kind == "text" else re.sub(r" *#.*", "", text)) for kind, text in blocks]


def spans(path: Path) -> list[str]:
    """What stands in backticks; Korean may put it in another order within a sentence."""
    return sorted(re.findall(r"`([^`]+)`", text_of(path)))


def figures(path: Path) -> list[str]:
    """All numbers, also those in comments of the code."""
    text = text_of(path) + "\n".join(block.text for block in read(path)[1])
    return sorted(re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", text))


def links(path: Path) -> list[str]:
    """Where they lead."""
    return sorted(re.findall(r"\]\(([^)]+)\)", text_of(path)))


@pytest.mark.parametrize("part", [headings, code, spans, figures, links])
def test_both_have_the_same(part):
    found = part(ENGLISH)
    assert found
    assert part(KOREAN) == found


def test_each_leads_to_the_other_in_its_first_lines():
    for path, other in ((ENGLISH, "(README.ko.md)"), (KOREAN, "(README.md)")):
        assert other in "\n".join(path.read_text(encoding="utf-8").splitlines()[:FIRST_LINES])


def test_the_prose_is_korean():
    """No paragraph was left in English."""
    for line in text_of(KOREAN).split("\n"):
        words = re.sub(r"`[^`]*`|\([^)]*\)", "", line)
        assert len(re.findall(r"[A-Za-z]{2,}", words)) < 12 or re.search("[가-힣]", words), line
