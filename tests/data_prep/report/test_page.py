"""Text as the page shows it: control characters visible, long texts cut."""

from __future__ import annotations

from data_prep.report.page import cut, visible


def test_control_characters_and_cuts():
    assert visible("a\x00\x1b\ud800\u202e한\n") == "a␀␛\\ud800⟨U+202E⟩한\n"
    assert visible("👨\u200d👩") == "👨\u200d👩"
    assert cut("x" * 150, 50, 20) == "x" * 150
    assert cut("a" * 500 + "z" * 500, 5, 3) == "aaaaa […992 characters…] zzz"
