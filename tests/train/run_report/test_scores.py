"""Scores of documents in the page of a run."""

from __future__ import annotations

import json
import re

import pytest

from data_prep.packed_rows import PackedRows
from data_prep.shards import manifest_sha256, read_manifest
from tests.support.report_runs import make_run, shown
from tests.support.training import make_shards
from train import report
from train.run_report import scores

BASE = "base"  # the model of make_run's record


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1, 2, 3, 1, 5, 1] * 3, "long": [6, 4, 5]}
    return make_shards(tmp_path_factory.mktemp("scores"), tiny_tokenizer.name_or_path, answers, eval_fraction=0.0)


@pytest.fixture
def run(shards, tmp_path):
    """On these shards."""
    folder = make_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record |= {"data": str(shards), "manifest_sha256": manifest_sha256(shards)}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def rows_of(shards):
    """A score for each document of the train split: its loss under the base model is its number."""
    manifest = read_manifest(shards)
    packed = PackedRows(shards, manifest, "train")
    for row in range(len(packed)):
        for place, document in enumerate(packed.documents(row)):
            number = int(packed.first_document[row]) + place
            yield {
                "source": manifest["sources"][document.source]["name"],
                "raw_row": number + 1000,
                "packed_row": row,
                "document": number,
                "tokens": int(document.input_ids.size),
                "trained_tokens": document.trained_tokens,
                "loss": float(number),
                "accuracy": 0.5,
            }


def write_scores(path, shards, rows, model=BASE, split="train", **head):
    first = {"model": model, "manifest_sha256": manifest_sha256(shards), "split": split, **head}
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [first, *rows]))
    return str(path)


def changed(rows):
    """Under the tuned model: every loss is halved, but that of document 3, which rises, and of 4, which is none."""
    for row in rows:
        loss = {3: 50.0, 4: None}.get(row["document"], row["loss"] / 2)
        yield {**row, "loss": loss}


def test_the_worst_and_the_most_changed_of_each_source_are_shown_with_their_text(run, shards, tmp_path):
    """Whatever the order of the files: the run's base model is what the other is compared with."""
    rows = list(rows_of(shards))
    base = write_scores(tmp_path / "b.jsonl", shards, rows)
    tuned = write_scores(tmp_path / "t.jsonl", shards, changed(rows), model="<tuned>")
    found = scores.section([*map(scores.Path, (tuned, base))], json.loads((run / "run.json").read_text()))
    assert found["models"] == [BASE, "<tuned>"] and {one["name"] for one in found["sources"]} == {"short", "long"}
    for source in found["sources"]:
        mine = [row for row in rows if row["source"] == source["name"] and row["document"] != 4]
        lists = dict(source["lists"])
        best = sorted((row for row in mine if row["document"] != 3), key=lambda row: -row["loss"])[: scores.MOST]
        assert [row["document"] for row in lists["Improved most"]] == [row["document"] for row in best if row["loss"]]
        has_third = any(row["document"] == 3 for row in mine)
        assert [row["document"] for row in lists.get("Got worse most", [])] == ([3] if has_third else [])
        assert len(lists["Highest loss"]) == min(scores.MOST, len(mine)) and source["documents"] == len(mine)
        if has_third:
            assert lists["Highest loss"][0]["document"] == 3 and lists["Got worse most"][0]["change"] == 47.0
        text = lists["Highest loss"][0]["text"]
        assert any(trained for _, trained in text) and "<|im_start|>user" in text[0][0]
    assert report.main([str(run), "--scores", base, tuned]) == 0
    page = (run / "report.html").read_text()
    assert "raw row 1003" in shown(page) and "+47" in page and "under &lt;tuned&gt;, compared with base" in page
    assert re.search(r'<pre class="document">&lt;\|im_start\|&gt;user', page)


def test_parts_of_one_file_are_one(run, shards, tmp_path):
    rows = list(rows_of(shards))
    files = [write_scores(tmp_path / f"{n}.jsonl", shards, part) for n, part in enumerate((rows[:4], rows[4:]))]
    record = json.loads((run / "run.json").read_text())
    found = scores.section([*map(scores.Path, files)], record)
    assert sum(source["documents"] for source in found["sources"]) == len(rows) and found["models"] == [BASE]
    assert [title for source in found["sources"] for title, _ in source["lists"]] == ["Highest loss"] * 2


def test_without_the_shards_documents_are_shown_by_their_numbers(run, shards, tmp_path):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": str(tmp_path / "gone")}))
    rows = list(rows_of(shards))
    base = write_scores(tmp_path / "b.jsonl", shards, rows)
    assert report.main([str(run), "--scores", base]) == 0
    words = shown((run / "report.html").read_text())
    assert "Documents are shown without their text" in words and f"raw row {rows[-1]['raw_row']}" in words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest_sha256": "0" * 64}, "holds scores of other shards"),
        ({"split": "eval"}, "expected scores of one split, found train and eval"),
        ({"model": None}, None),
        ("half", "expected a file of packhaul score"),
        ("no head", "its first line lacks model, split, manifest_sha256"),
        ("empty", "expected a file of packhaul score"),
    ],
)
def test_what_is_no_file_of_scores_of_this_run_is_refused(change, said, run, shards, tmp_path, capsys):
    """A .part file of a run that was killed ends with half a line."""
    rows = list(rows_of(shards))
    good, other = write_scores(tmp_path / "b.jsonl", shards, rows), tmp_path / "o.jsonl"
    write_scores(other, shards, rows, **(change if isinstance(change, dict) else {}))
    text = other.read_text()
    broken = {"half": text[:-9], "no head": text.partition("\n")[2], "empty": ""}
    other.write_text(broken[change] if isinstance(change, str) else text)
    assert report.main([str(run), "--scores", good, str(other)]) == (0 if said is None else 2)
    assert said is None or said in capsys.readouterr().err


def test_one_run_at_a_time(run, capsys):
    assert report.main([str(run), str(run), "--scores", "x"]) == 2
    assert "expected one RUN_DIR" in capsys.readouterr().err
