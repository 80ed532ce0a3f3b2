"""The report: its numbers against plain numpy, its page safe, self-contained and readable at phone width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep import prepare
from data_prep.mixture.documents import EVAL, TRAIN, UNUSED
from data_prep.quality.languages import LANGUAGES
from data_prep.quality.task_types import TASK_TYPES, UNKNOWN
from data_prep.report.build import REPORT_HTML, REPORT_JSON, ReportData, build_report, load_report_data, write_report
from data_prep.report.page import visible
from data_prep.report.samples import Sample, dropped_examples, sample_documents
from data_prep.shards import IGNORE_INDEX, read_manifest, read_rows, shard_files
from tests.conftest import CORPUS

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)"></mark></pre>&\x00\x1b[31m\u202e\ud800'
NAMES = ("alpaca", "한국어_데이터", "<b>bold</b>")


@pytest.fixture
def documents() -> ReportData:
    random = np.random.default_rng(0)
    size = 3000
    length = np.clip(random.lognormal(4, 0.8, size), 4, 512).astype(np.int32)
    split = random.choice([TRAIN, EVAL, UNUSED], size, p=[0.8, 0.1, 0.1]).astype(np.int8)
    return ReportData(
        length=length,
        trained=np.maximum(length // 3, 1).astype(np.int32),
        source=random.integers(0, len(NAMES), size).astype(np.int32),
        split=split,
        copies=np.where(split == TRAIN, random.integers(1, 4, size), np.where(split == EVAL, 1, 0)).astype(np.int32),
        task_type=random.integers(0, len(TASK_TYPES), size).astype(np.uint8),
        language=random.choice([LANGUAGES.index("en"), LANGUAGES.index("ko")], size).astype(np.uint8),
    )


@pytest.fixture
def manifest(documents) -> dict:
    """As data_prep.stages.finish_stage makes it, as far as the report reads it."""
    train, evaluation = documents.split == TRAIN, documents.split == EVAL
    sources, mixture = [], []
    for i, name in enumerate(NAMES):
        mine = documents.source == i
        sources.append(
            {
                "name": name,
                "rows": int(mine.sum()) + 40,
                "dropped": {"too_long": 30, "duplicate": 10},
                "changed": {"truncated": 7, "escaped": 3} if i == 1 else {},
                "places": {"escaped": 11} if i == 1 else {},
                "lost_tokens": {"too_long": 54_321, **({"truncated": 777} if i == 1 else {})},
                "kept": int(mine.sum()),
                "documents": int(mine.sum()),
                "unused": int((mine & (documents.split == UNUSED)).sum()),
                "train_documents": int((mine & train).sum()),
                "train_uses": int(documents.copies[mine & train].sum()),
                "eval_documents": int((mine & evaluation).sum()),
            }
        )
        mixture.append({"source": name, "asked": 0.2, "got": 0.3333})
    tokens = int((documents.length * documents.copies)[train].sum())
    trained = int((documents.trained * documents.copies)[train].sum())
    uses = int(documents.copies[train].sum())
    return {
        "identity": "0123456789abcdef",
        "recipe": {"seed": 42, "weight_unit": "trained_tokens"},
        "seq_len": 512,
        "tokenizer": {"name": "토크나이저"},
        "chat_template": "chatml",
        "sources": sources,
        "mixture": mixture,
        "notes": ["source alpaca: it gets less"],
        "splits": {
            "train": {"rows": tokens // 512 + 2, "documents": uses, "tokens": tokens, "trained_tokens": trained},
            "eval": {"rows": 40, "documents": int(evaluation.sum())},
        },
        "versions": {"packhaul": "0.1.0"},
    }


SAMPLES = [
    Sample("한국어_데이터", "train/00000.arrow row 0", 20, 9, [("제1형 당뇨병은?", False), ("인슐린입니다.", True)]),
    Sample("<b>bold</b>", "here", 3, 1, [(EVIL, False), (EVIL, True), ("긴 글 " * 5000, False)]),
]
DROPPED = {"alpaca": {"too_long": [{"row": 3, "detail": EVIL, "value": {"instruction": EVIL}}], "duplicate": []}}


class Page(HTMLParser):
    """The tags of a page, its text, and the text inside <mark>."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = self.marked = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "mark" in self.open:
            self.marked += data


def test_numbers_equal_numpy_on_every_use(manifest, documents):
    _, numbers = build_report(manifest, documents, [], {})
    for mine, found in [
        (documents.source >= 0, numbers["overall"]),
        *((documents.source == i, source) for i, source in enumerate(numbers["sources"])),
    ]:
        for split, code in (("train", TRAIN), ("eval", EVAL)):
            chosen = mine & (documents.split == code)
            used = np.repeat(documents.length[chosen], documents.copies[chosen])
            assert found[split]["length"]["rows"] == used.size
            assert found[split]["length"]["tokens"] == used.sum()
            assert found[split]["length"]["p95"] == pytest.approx(np.percentile(used, 95), abs=0.006)
        chosen = mine & (documents.split == TRAIN)
        copies = documents.copies[chosen]
        assert sum(found["histogram"]["counts"]) == copies.sum()
        korean = copies[documents.language[chosen] == LANGUAGES.index("ko")].sum() / copies.sum()
        assert found["languages"]["rows"]["ko"] == pytest.approx(korean, abs=1e-6)
        coding = (copies * documents.trained[chosen])[documents.task_type[chosen] == TASK_TYPES.index("coding")].sum()
        share = coding / (copies * documents.trained[chosen]).sum()
        assert found["task_types"]["trained_tokens"]["coding"] == pytest.approx(share, abs=1e-6)
    train = manifest["splits"]["train"]
    assert numbers["packing"]["train"]["efficiency"] == pytest.approx(train["tokens"] / train["rows"] / 512, abs=1e-6)
    assert json.loads(json.dumps(numbers)) == numbers


def test_a_sample_is_called_a_sample(manifest, documents):
    documents.task_type[::2] = UNKNOWN
    page, numbers = build_report(manifest, documents, [], {})
    train = documents.split == TRAIN
    some, everything = int((documents.task_type[train] != UNKNOWN).sum()), int(train.sum())
    assert f"Told from {some:,} of {everything:,} documents" in page
    assert page.count("Told from") == 1  # the languages of all are known
    assert numbers["overall"]["task_types"]["looked_at"] == some
    assert sum(numbers["overall"]["task_types"]["rows"].values()) == pytest.approx(1)


def test_the_page_is_sound_self_contained_and_the_same_each_time(manifest, documents):
    html, numbers = build_report(manifest, documents, SAMPLES, DROPPED)
    page = Page(html)
    assert page.open == []
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on") or a in ("src", "href")]
    assert "http://" not in html and "https://" not in html and "url(" not in html
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)
    html.encode("utf-8")
    assert build_report(manifest, documents, SAMPLES, DROPPED) == (html, numbers)


def test_text_of_the_data_is_shown_as_text(manifest, documents):
    page = Page(build_report(manifest, documents, SAMPLES, DROPPED)[0])
    shown = visible(EVIL)
    assert page.text.count(shown) >= 2 and shown in page.marked
    assert "인슐린입니다." in page.marked and "당뇨병" not in page.marked  # only what is trained is coloured
    assert "한국어_데이터" in page.text and "토크나이저" in page.text and "<b>bold</b>" in page.text
    assert "characters…" in page.text  # a long text is cut
    assert "truncated (kept)" in page.text and "54,321" in page.text and "777" in page.text


def test_a_missing_font_is_explained_where_it_would_be_missed(manifest, documents):
    assert "this device has no Korean font" in build_report(manifest, documents, [], {})[0]
    documents.language[:] = LANGUAGES.index("en")
    assert "Korean font" not in build_report(manifest, documents, [], {})[0]


def test_notes_say_what_to_look_at(manifest, documents):
    manifest["sources"][0].update(rows=100, dropped={"too_long": 60}, train_documents=10, train_uses=70)
    manifest["splits"]["train"]["rows"] *= 2
    found = build_report(manifest, documents, [], {})[1]["notes"]
    about_first = next(note["text"] for note in found if note.get("source") == "alpaca")
    for part in ("20.0% of the mixture was asked for, 33.3% came out", "60% of its rows", "used 7.0 times"):
        assert part in about_first
    assert any("Packing fills only" in note["text"] for note in found)
    assert found[0] == {"text": "source alpaca: it gets less"}  # the plan's own notes come first


def test_one_source_without_drops_or_evaluation(manifest, documents):
    only = {key: getattr(documents, key)[documents.source == 0] for key in ReportData.__slots__}
    only["split"][only["split"] == EVAL] = UNUSED
    only["copies"][only["split"] == UNUSED] = 0
    manifest["sources"] = [{**manifest["sources"][0], "dropped": {}}]
    manifest["mixture"] = [{"source": "alpaca", "asked": None, "got": 1.0}]
    manifest["splits"]["eval"] = {"rows": 0, "documents": 0}
    manifest["notes"] = []
    html, numbers = build_report(manifest, ReportData(**only), [], {})
    assert Page(html).open == [] and numbers["packing"]["eval"] == {"rows": 0}
    assert numbers["notes"][-1]["text"].startswith("Nothing is held out")


# With shards as preparation makes them.


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [{"question": f"{CORPUS[i % 8]} {i}", "answer": f"답 {i}. {CORPUS[i % 5]}"} for i in range(80)]
    rows[5] = rows[4]
    rows[6] = {"question": "빈 답", "answer": " "}
    (folder / "qa.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    source = {"path": str(folder / "qa.json"), "form": "question_answer"}
    recipe = {
        "tokenizer": tiny_tokenizer.name_or_path,
        "chat_template": "chatml",
        "seq_len": 256,
        "sources": [{"name": "first", **source}, {"name": "second", **source}],
        "deduplicate": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = ["--recipe", str(folder / "recipe.yaml"), "--output", str(folder / "out"), "--num-workers", "1"]
    assert prepare.main(command) == 0
    return folder / "out"


def test_samples_are_documents_of_the_shards(shards, tiny_tokenizer):
    manifest = read_manifest(shards)
    samples = sample_documents(shards, manifest, tiny_tokenizer, per_source=3)
    assert [s.source for s in samples] == ["first"] * 3 + ["second"] * 3
    assert len({s.where for s in samples}) == 6
    for sample in samples:
        trained = "".join(text for text, is_trained in sample.runs if is_trained)
        assert re.fullmatch(r"답 \d+\. .*<\|im_end\|>", trained) and sample.runs[0][0].startswith("<|im_start|>user")
        assert 0 < sample.num_trained < sample.num_tokens


def test_examples_of_each_reason(shards, tmp_path):
    manifest = read_manifest(shards)
    found = dropped_examples(shards, manifest)
    assert list(found["first"]) == ["empty_output"] and found["first"]["empty_output"][0]["row"] == 6
    copy = tmp_path / "dropped"
    copy.mkdir()
    value = {"reason": "duplicate"}  # a row's own column must not be taken for the reason
    lines = [{"row": i, "reason": "too_long" if i < 9 else "duplicate", "value": value} for i in range(12)]
    (copy / "first.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest["sources"] = [{"name": "first", "dropped": {"too_long": 9, "duplicate": 3}}]
    found = dropped_examples(tmp_path, manifest)["first"]
    assert {reason: [row["row"] for row in rows] for reason, rows in found.items()} == {
        "too_long": [0, 1],
        "duplicate": [9, 10],
    }


def test_files_are_written_from_parts_and_plan(shards, tmp_path, tiny_tokenizer):
    manifest = read_manifest(shards)
    columns = {"length": [], "trained": [], "source": [], "split": []}
    for split, code in (("train", TRAIN), ("eval", EVAL)):
        for row in (row for file in shard_files(shards, manifest, split) for row in read_rows(file)):
            ends = np.cumsum(row["seq_lengths"])
            trained = np.add.reduceat(row["labels"] != IGNORE_INDEX, ends - row["seq_lengths"])
            columns["length"] += row["seq_lengths"].tolist()
            columns["trained"] += trained.tolist()
            columns["source"] += row["sources"].tolist()
            columns["split"] += [code] * row["seq_lengths"].size
    arrays = {key: np.array(values, dtype=np.int32) for key, values in columns.items()}
    size = arrays["length"].size
    codes = {"task_type": np.zeros(size, dtype=np.uint8), "language": np.ones(size, dtype=np.uint8)}
    for part, (start, end) in enumerate([(0, 50), (50, size)]):
        pieces = {k: v[start:end] for k, v in {**arrays, **codes}.items() if k not in ("source", "split")}
        np.savez(tmp_path / f"{part}.npz", **pieces)
    np.savez(
        tmp_path / "plan.npz", source=arrays["source"], split=arrays["split"], copies=np.ones(size, dtype=np.int32)
    )
    documents = load_report_data([tmp_path / "0.npz", tmp_path / "1.npz"], tmp_path / "plan.npz")
    write_report(shards, manifest, documents, tiny_tokenizer)
    numbers = json.loads((shards / REPORT_JSON).read_text(encoding="utf-8"))
    for key in ("tokens", "trained_tokens"):
        which = "length" if key == "tokens" else "trained"
        assert numbers["overall"]["train"][which]["tokens"] == manifest["splits"]["train"][key]
    assert "답 " in Page((shards / REPORT_HTML).read_text(encoding="utf-8")).marked


# In a real browser.


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_in_a_browser(manifest, documents, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium found: install the package chromium")
    (tmp_path / "report.html").write_text(build_report(manifest, documents, SAMPLES, DROPPED)[0], encoding="utf-8")
    script = (
        "const page = document.querySelector('iframe').contentDocument;"
        "document.title = [page.documentElement.scrollWidth, page.querySelectorAll('svg rect').length,"
        " page.querySelector('svg').getBoundingClientRect().height].join(' ')"
    )
    frame = f'<iframe src="report.html" width="{width}" height="900" style="border:0" onload="{script}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title>waiting</title>{frame}", encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=3000"
    command = [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    result = subprocess.run([*command, f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, check=True)
    title = re.search(r"<title>(.*?)</title>", result.stdout)
    assert title and title[1] != "waiting"
    scroll_width, bars, height = (float(n) for n in title[1].split())
    assert scroll_width <= width and bars > 100 and height > 100
