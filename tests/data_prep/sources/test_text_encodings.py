"""Encodings: stated, marked, detected where that is certain, never guessed; what is broken costs its own row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from data_prep.sources import slices, text_encodings
from data_prep.sources.slices import read_slice, slice_source
from data_prep.sources.text_encodings import detect, known, to_utf8
from tests.support.reading import read_all, source_of, values, write

KOREAN = ["안녕하세요, 오늘 날씨가 좋네요.", "이 문장을 영어로 번역해 주세요.", "고맙습니다. 또 만나요!"]
CHINESE = ["医生您好，前两天感觉身体不舒服。", "高血压患者平时应该注意什么？", "请把这句话翻译成英文。"]
JAPANESE = ["これは日本語の文章です。", "次の文を英語に訳してください。", "漢字とカタカナも含みます。"]
RUSSIAN = ["Привет, как дела?", "Переведите это предложение на английский язык.", "Объясните простыми словами."]
FRENCH = ["Le café était fermé à cause de l'été.", "Où êtes-vous allé ? Ça va très bien.", "Noël, août, naïf, l'élève."]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PACKHAUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(slices, "_REPORTED", set())


def rows_of(texts: list[str]) -> list[dict[str, str]]:
    return [{"id": str(number), "text": f'{text} "{number}"\n'} for number, text in enumerate(texts * 3)]


def as_text(rows: list[dict[str, str]], form: str) -> str:
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if form == "json":
        return json.dumps(rows, ensure_ascii=False)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


DETECTED = [
    ("cp949", KOREAN, "cp949"),
    ("euc_kr", KOREAN, "cp949"),
    ("gb18030", CHINESE, "gb18030"),
    ("gbk", CHINESE, "gb18030"),
    ("cp932", JAPANESE, "cp932"),
    ("cp1251", RUSSIAN, "cp1251"),
]


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
@pytest.mark.parametrize(("encoding", "texts", "read_as"), DETECTED)
def test_an_encoding_that_is_certain_is_detected_and_reported_once(tmp_path, capsys, encoding, texts, read_as, form):
    rows = rows_of(texts)
    source = source_of(write(tmp_path / f"x.{form}", as_text(rows, form).encode(encoding)))
    for rows_per_slice in (1, 5):
        assert values(read_all(source, rows_per_slice)) == rows
    assert {piece.encoding for piece in slice_source(source, 5)} == {read_as}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"x.{form}: not UTF-8 from byte" in said and f"read as {read_as}, as detected. State the" in said


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-8"])
def test_a_byte_order_mark_tells(tmp_path, capsys, encoding, form):
    rows = rows_of(KOREAN + CHINESE)
    assert values(read_all(source_of(write(tmp_path / f"x.{form}", as_text(rows, form).encode(encoding))), 5)) == rows
    big_endian = "\ufeff".encode("utf-16-be") + as_text(rows, form).encode("utf-16-be")
    assert values(read_all(source_of(write(tmp_path / f"y.{form}", big_endian)), 5)) == rows
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["utf-16-le", "cp1252", "koi8-r", "CP949", "UTF8", "shift_jis"])
def test_a_stated_encoding_is_used(tmp_path, encoding):
    text = {"cp1252": FRENCH, "koi8-r": RUSSIAN, "shift_jis": JAPANESE}.get(encoding, KOREAN)
    source = source_of(write(tmp_path / "x.csv", as_text(rows_of(text), "csv").encode(encoding)), encoding=encoding)
    assert values(read_all(source)) == rows_of(text)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("klingon", "encoding 'klingon' is not known; expected one of Python's, such as utf-8, cp949"),
        ("base64", "encoding 'base64' is not known"),
        ("\0", "is not known"),
        ("utf-16", r"x\.csv: not utf-16: .*BOM; utf-16-le and utf-16-be say"),
    ],
)
def test_a_stated_encoding_that_cannot_be_is_refused(tmp_path, encoding, message):
    with pytest.raises(ValueError, match=rf"source 's': .*{message}"):
        slice_source(source_of(write(tmp_path / "x.csv", "a,b\n1,2\n"), encoding=encoding), 2)
    assert known("UTF_8") == known("utf-8-sig") == "utf-8"


# What is not guessed.


def test_a_reading_that_is_not_certain_is_not_taken(tmp_path, capsys):
    """French in cp1252 reads nearly as well, but wrongly, in cp1250: half of the accents would change."""
    rows = rows_of([*FRENCH, "ASCII"])
    found = values(read_all(source_of(write(tmp_path / "x.csv", as_text(rows, "csv").encode("cp1252"))), 5))
    assert [row for row in found if row != "not_utf8"] == [row for row in rows if row["text"].isascii()]
    assert len(found) == len(rows)
    assert "not clear what else; it may be cp125" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raw",
    [
        "안녕하세요".encode("cp949"),
        b"\xff" * 100,
        bytes(range(128, 256)) * 3,
        "".join(f"hello \ud83c{chr(0xDCF0 + 7 * n)} " for n in range(20)).encode("utf-8", "surrogatepass"),
        "".join(map(chr, range(0x4E02, 0x4E2E, 3))).encode("gbk") * 8,  # characters of no text
    ],
)
def test_a_few_broken_bytes_or_rubbish_are_no_encoding(tmp_path, raw):
    content = b'{"a": 1}\n' + raw + b'\n{"a": 2}\n' + b'{"a": "' + raw + b'"}\n'
    assert values(read_all(source_of(write(tmp_path / "x.jsonl", content)))) == [
        {"a": 1},
        "not_utf8",
        {"a": 2},
        "not_utf8",
    ]


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_utf8_file_with_a_part_in_another_encoding_stays_utf8(tmp_path, capsys, where):
    """Appended by another program, say. The part is listed, row by row, and the rest is what it was."""
    whole = [{"text": text} for text in (KOREAN + CHINESE) * 30]
    broken = [{"text": text} for text in KOREAN * 20]
    parts = [as_text(whole, "jsonl").encode(), as_text(broken, "jsonl").encode("cp949")]
    path = write(tmp_path / "x.jsonl", b"".join(parts if where == "behind" else parts[::-1]))
    expected = [*whole, *["not_utf8"] * 60]
    assert values(read_all(source_of(path), 50)) == (expected if where == "behind" else expected[::-1][:60] + whole)


def test_utf8_far_behind_is_seen_too(tmp_path, monkeypatch):
    """Else it would be read, without an error, as other characters."""
    monkeypatch.setattr(text_encodings, "_SAMPLE", 1000)
    korean, utf8 = (
        as_text(rows_of(KOREAN * 60), "jsonl").encode("cp949"),
        as_text(rows_of(KOREAN * 60), "jsonl").encode(),
    )
    assert detect(write(tmp_path / "x", korean)).encoding == "cp949"
    assert detect(write(tmp_path / "x", korean + utf8)).encoding == "utf-8"
    assert detect(write(tmp_path / "x", korean + utf8[: len(utf8) // 4])).encoding == "utf-8"
    assert detect(write(tmp_path / "x", b"a" * 5000 + b"\n" + korean)).encoding == "cp949"
    few_lines = "".join(text * 10 + "\n" for text in KOREAN * 20).encode()  # a tenth of the lines, and more of the text
    assert detect(write(tmp_path / "x", korean + few_lines)).encoding == "utf-8"


def test_a_broken_row_of_another_encoding_costs_itself_only(tmp_path):
    rows = rows_of(CHINESE * 2)
    lines = as_text(rows, "jsonl").encode("gb18030").split(b"\n")
    lines[3] = lines[3].replace(b"text", b"text\xff")
    path = write(tmp_path / "x.jsonl", b"\n".join(lines))
    found = read_all(source_of(path), 4)
    assert values(found) == [*rows[:3], "not_decodable", *rows[4:]]
    assert found[3].value.detail.startswith("bytes that are not gb18030 at character 17 of the row, which starts")
    assert found[3].where == f"{path}:4"


def test_bytes_that_are_no_character_never_come_back_as_text():
    for encoding in ("cp949", "gb18030", "utf-16-le", "ascii", "iso2022_jp"):
        made = b"".join(to_utf8([b"\xff\xff\x00\xd8a\x00"], encoding))
        with pytest.raises(UnicodeDecodeError):
            made.decode("utf-8")
        cut_off = b"".join(to_utf8(["a한".encode("cp949")[:-1]], "cp949"))
        with pytest.raises(UnicodeDecodeError):
            cut_off.decode("utf-8")


# Bounded, and wherever a chunk ends.


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_characters_are_whole_wherever_a_chunk_ends(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text_encodings, "_CHUNK", chunk)
    path = write(tmp_path / "x.txt", "a한글😀é" * 20)
    assert detect(path).encoding == "utf-8"
    write(path, "a한글😀é".encode() * 20 + b"\xed\x95\x20" + "글".encode() * 40)
    assert text_encodings._first_not_utf8(path, None) == 20 * len("a한글😀é".encode())
    assert text_encodings._first_not_utf8(path, 100) is None
    for encoding in ("gb18030", "utf-16", "cp949", "utf-7"):
        raw = "한글 a,漢字".encode(encoding)
        chunks = (raw[start : start + chunk] for start in range(0, len(raw), chunk))
        assert b"".join(to_utf8(chunks, encoding)).decode() == "한글 a,漢字"


@pytest.mark.parametrize("separator", [b"\n", b"", b'","'])
def test_the_sample_is_cut_between_characters(tmp_path, monkeypatch, separator):
    raw = separator.join(text.encode("gb18030") for text in CHINESE * 40)
    path = write(tmp_path / "x", b"a" * 3000 + separator + raw)
    found = set()
    for size in range(1000, 1009):
        monkeypatch.setattr(text_encodings, "_SAMPLE", size)
        found.add(detect(path).encoding)
    assert found == {"gb18030"} if separator else "gb18030" in found


def test_the_sample_starts_where_a_character_does(tmp_path):
    """The first byte that is not UTF-8 can be the second one of a character."""
    text = b"\xe2\xb0".decode("gb18030") + "。" + "".join(CHINESE)
    raw = json.dumps([{"text": text}], ensure_ascii=False).encode("gb18030")
    broken = text_encodings._first_not_utf8(write(tmp_path / "x", raw), None)
    assert raw[broken - 1 :].startswith("。".encode("gb18030"))
    assert detect(tmp_path / "x").encoding == "gb18030"


def test_with_first_only_the_beginning_is_looked_at(tmp_path, monkeypatch):
    from data_prep.sources import plain_copies

    path = write(tmp_path / "x.jsonl", b'{"a": 1}\n' * 50 + as_text(rows_of(KOREAN), "jsonl").encode("cp949"))
    monkeypatch.setattr(plain_copies, "_FIRST_BYTES", 100)
    assert values(read_all(source_of(path, first=51))) == [{"a": 1}] * 50 + ["not_utf8"]
    monkeypatch.setattr(plain_copies, "_FIRST_BYTES", 1000)
    assert values(read_all(source_of(path, first=51))) == [{"a": 1}] * 50 + rows_of(KOREAN)[:1]


# Real files.


def test_every_real_file_is_read_as_what_it_is(shared_data):
    files = [path for path in (shared_data / "text").rglob("*.*") if path.is_file()]
    found = {path.name: detect(path).encoding for path in files}
    assert {name: encoding for name, encoding in found.items() if encoding != "utf-8"} == {
        "toyhom_zh_2000_gb18030.csv": "gb18030"
    }
    assert len(found) >= 20


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_a_real_korean_file_reads_the_same_in_another_encoding(shared_data, tmp_path, encoding):
    path: Path = shared_data / "text/ko/songys_chatbot_11823.csv"
    other = write(tmp_path / "x.csv", path.read_text(encoding="utf-8").encode(encoding, "ignore"))
    expected = values(read_all(source_of(path), 1000))
    slices = slice_source(source_of(other), 1000)
    found = [row.value for piece in slices for row in read_slice(source_of(other), piece)]
    differing = [new for new, old in zip(found, expected, strict=True) if new != old]
    assert len(differing) <= (10 if encoding == "cp949" else 0), "characters that cp949 lacks"
