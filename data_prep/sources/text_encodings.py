"""The encoding of a text file, and its text as UTF-8.

The recipe states it, else the byte order mark does, else it is UTF-8 where the bytes are that, else charset-normalizer
guesses it. A wrong guess would be trained on without a sign of it. So a guess is taken only where no other reading is
nearly as good, and a UTF-8 file with some broken rows stays one: those rows are counted and listed.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.conversation import BadRow

UTF8 = "utf-8"
_CHUNK = 1 << 20  # bytes read at once
_SAMPLE = 1 << 16  # bytes that detection looks at, at each of
_NUM_SAMPLES = 4  # places
_CUTS = (b"\n", b'"')  # neither is ever part of a longer character
_BEFORE = 1 << 16  # bytes before the first byte that is not UTF-8, in which characters show that the rest is
_FEW = 32  # broken characters; fewer tell nothing about another encoding
_NEARLY_ALL = 0.9  # of the lines
_CLOSE = 0.05  # in charset-normalizer's mess ratio (0 to 1): another reading that is so close may be the right one
# Those in use for text on the web and in office files, the usual one of several with the same result first.
_OF_SEVERAL_BYTES = ["gb18030", "cp949", "big5", "cp932", "euc_jp"]
_CANDIDATES = [*_OF_SEVERAL_BYTES, "cp1252", "cp1250", "cp1251", "koi8_r", *(f"cp125{n}" for n in range(3, 9))]
_BOMS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: it starts with that mark
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")  # in UTF-8: not allowed, and yet a sign of UTF-8
_NOT_A_CHARACTER = "\udc80"  # stands for bytes that are none in the file's encoding; strict UTF-8 refuses it again


@dataclass(frozen=True, slots=True)
class Detected:
    """What a file is read as, and what to say about it (None for UTF-8 and where a byte order mark tells)."""

    encoding: str
    remark: str | None = None


def known(name: str) -> str:
    """Python's name of a text encoding.

    Raises:
        ValueError: it has none of that name.
    """
    try:
        b" ".decode(name, "replace")  # refuses also what is a codec but no text encoding, such as base64
        found = codecs.lookup(name).name
        return UTF8 if found == "utf-8-sig" else found  # a mark at the start is always skipped
    except (LookupError, ValueError):
        raise ValueError(
            f"encoding {name!r} is not known; expected one of Python's, such as utf-8, cp949 (Korean Windows), gb18030 "
            "(Chinese), cp932 (Japanese Windows), cp1252 (Western Windows) or utf-16"
        ) from None


def detect(path: Path, limit: int | None = None) -> Detected:
    """The encoding of a text file, by its whole content or its first `limit` bytes. Bounded memory."""
    with path.open("rb") as file:
        head = file.read(4)
        for mark, encoding in _BOMS:
            if head.startswith(mark):
                return Detected(encoding)
    broken = _first_not_utf8(path, limit)
    return Detected(UTF8) if broken is None else _judge(path, broken)


def to_utf8(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The text in UTF-8. Bytes that are no character become ones that strict UTF-8 refuses: they spoil their row."""
    decoder = codecs.getincrementaldecoder(encoding)(errors=_ERRORS)
    for chunk in chunks:
        yield decoder.decode(chunk).encode(UTF8, "surrogatepass")
    yield decoder.decode(b"", final=True).encode(UTF8, "surrogatepass")


def undecodable(error: UnicodeDecodeError, encoding: str, what: str = "the row") -> BadRow:
    """Why a row, or a cell of it, is not UTF-8; `encoding` is what the file was in before `to_utf8`."""
    starts = f"of {what}, which starts {error.object[:60]!r}"
    if encoding == UTF8:
        hint = "if the whole file is in another encoding, state it as the source's `encoding`"
        return BadRow("not_utf8", f"{error.reason} at byte {error.start} {starts}; {hint}")
    position = len(error.object[: error.start].decode(UTF8, "replace"))
    return BadRow("not_decodable", f"bytes that are not {encoding} at character {position} {starts}")


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _NOT_A_CHARACTER, error.end


_ERRORS = "packhaul_mark"
codecs.register_error(_ERRORS, _mark)


def _first_not_utf8(path: Path, limit: int | None) -> int | None:
    """First byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder(UTF8)()
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK if limit is None else min(_CHUNK, limit - position)):
            waiting = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return position - waiting + error.start
            position += len(chunk)
    return None  # a character cut off at the end spoils the last row only


def _judge(path: Path, broken: int) -> Detected:
    """UTF-8 where characters of UTF-8 stand before the first broken byte or among the rest, or little is broken; else
    what detection finds."""
    before, samples = _around(path, broken)
    counts = [_characters(sample) for sample in samples]
    is_little_broken = sum(bad for _, bad in counts) < _FEW
    begins_as_utf8 = _characters(before)[0] >= _FEW
    goes_on_as_utf8 = any(good > max(bad, _FEW) for good, bad in counts)
    if is_little_broken or begins_as_utf8 or goes_on_as_utf8:
        return Detected(UTF8)
    guesses = _guesses(b"\n".join(samples))
    if len(guesses) == 1:
        return Detected(guesses[0], f"not UTF-8 from byte {broken} on; read as {guesses[0]}, as detected")
    likely = f"; it may be {' or '.join(guesses[:3])}" if guesses else ""
    return Detected(UTF8, f"not UTF-8 from byte {broken} on, and not clear what else{likely}: such rows are dropped")


def _around(path: Path, position: int) -> tuple[bytes, list[bytes]]:
    """Text before `position`, and samples of what follows, to the end of the file, cut where no character is cut.

    In a file of 1,000 bytes with position 400, four samples of 100 bytes begin at 400, 566, 732 and 898, so that the
    last one ends near the end of the file. The first is made whole by what stands before 400 in its row.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, position - _BEFORE))
        before = file.read(min(position, _BEFORE))
        begin_of_row = _last_cut(before)
        step = max(0, size - position - _SAMPLE) // (_NUM_SAMPLES - 1)
        starts = range(position, position + step * _NUM_SAMPLES, step) if step else [position]
        samples = [_sample(file, start, size, is_first=start == position) for start in starts]
    samples[0] = before[begin_of_row:] + samples[0]
    return before[:begin_of_row], samples


def _sample(file: BinaryIO, start: int, size: int, *, is_first: bool) -> bytes:
    """Bytes from `start` on, without the part of a row at the beginning, if not `is_first`, and at the end."""
    file.seek(start)
    sample = file.read(_SAMPLE)
    is_at_end = file.tell() == size
    begin = 0 if is_first else min(n for n in (*map(sample.find, _CUTS), len(sample)) if n >= 0)
    end = len(sample) if is_at_end else _last_cut(sample)
    return sample[begin : end or len(sample)]


def _last_cut(text: bytes) -> int:
    """One past the last byte at which text may be cut; 0 if there is none."""
    return max(text.rfind(mark) for mark in _CUTS) + 1


def _characters(sample: bytes) -> tuple[int, int]:
    """How many characters outside of ASCII UTF-8 finds in it, and how many places that it cannot read."""
    text = _SURROGATE.sub(b"?", sample).decode(UTF8, "replace")
    bad = text.count("\ufffd")
    return len(text) - len(text.encode("ascii", "ignore")) - bad, bad


def _undamaged(lines: list[bytes]) -> list[bytes]:
    """Without the few that are not in the encoding that nearly all are in: charset-normalizer wants all or nothing."""
    kept = max(([line for line in lines if _decodes(line, encoding)] for encoding in _OF_SEVERAL_BYTES), key=len)
    return kept if len(kept) >= _NEARLY_ALL * len(lines) else lines


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_strict(encoding: str, text: bytes) -> bool:
    """Whether an encoding that allows few pairs of bytes reads the text: that is hardly by chance."""
    if encoding == "gb18030":  # allows nearly all, but its older part does not
        return _decodes(text, "gb2312")
    return encoding in _OF_SEVERAL_BYTES


def _guesses(sample: bytes) -> list[str]:
    """Encodings that read the sample about equally well but differently: one if it is clear, none if none does."""
    from charset_normalizer import from_bytes

    text = b"".join(_undamaged([line for line in sample.splitlines(keepends=True) if not line.isascii()]))
    matches = list(from_bytes(text, cp_isolation=_CANDIDATES, preemptive_behaviour=False))
    close = [match for match in matches if match.chaos < matches[0].chaos + _CLOSE]
    guesses = [next((name for name in _CANDIDATES if name in m.could_be_from_charset), m.encoding) for m in close]
    if len(close) == 1 and close[0].coherence == 0 and not _is_strict(guesses[0], text):
        return []  # it can read nearly any bytes, and the letters are not as frequent as in any language
    return guesses
