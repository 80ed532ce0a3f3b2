"""The eval split of one preparation of many sources: by question, by a column, by conversation, and a split given."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_prep.shards import read_manifest, read_rows, shard_files
from tests.conftest import CORPUS
from tests.support.preparation import edit_recipe, run, write_recipe

NUM_QUESTIONS = 60
NAMES = ("asked", "talk", "pages", "gaps", "similar")


def text(name: str, number: int) -> str:
    """A question that shares nothing with the others but its first word."""
    first = 0x4E00 + 60 * (NAMES.index(name) * NUM_QUESTIONS + number)
    return f"누구 {''.join(map(chr, range(first, first + 50)))} Q{number}"


def answered(name: str, page: Callable[[int], Any] | None = None) -> list[dict]:
    """Each question, answered in three ways, by rows that lie far from each other."""
    numbered = [(a, q) for a in range(3) for q in range(NUM_QUESTIONS)]
    rows = [{"question": text(name, q), "answer": f"{q}. {CORPUS[a]}"} for a, q in numbered]
    return [{**row, "page": page(q)} for row, (_, q) in zip(rows, numbered, strict=True)] if page else rows


def similar() -> list[dict]:
    """Questions that differ in their last character, and otherwise in all."""
    texts = [text("similar", q) for q in range(40)]
    return [{"question": t + end, "answer": f"{q}{end}"} for q, t in enumerate(texts) for end in ("", "?", "!")]


OWN = [{"question": text("asked", q), "answer": f"Right: {q}."} for q in (0, 1, 2, 2, 3)] * 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_tokenizer):
    """The manifest, the users' texts of each source in both splits, and the folder."""
    folder = tmp_path_factory.mktemp("eval")
    rows = {"asked": answered("asked"), "talk": answered("talk"), "similar": similar(), "own": OWN}
    for row in rows["asked"][:NUM_QUESTIONS]:  # to a person, the same
        row["question"] = unicodedata.normalize("NFD", f" {row['question'].upper()}\n")
    rows["pages"] = answered("pages", lambda q: q // 2 if q % 2 else str(q // 2))
    rows["gaps"] = answered("gaps", lambda q: None if q >= 50 else q // 2)
    pages = {"group_by": {"column": "page"}}
    options = {"talk": {"group_by": "conversation"}, "pages": pages, "gaps": pages, "own": {"eval": True}}
    sources = []
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        path = str(folder / f"{name}.jsonl")
        sources.append({"name": name, "path": path, "form": "question_answer", **options.get(name, {})})
    named = {"tokenizer": tiny_tokenizer.name_or_path, "sources": sources, "eval_fraction": 0.1, "seq_len": 2048}
    recipe = write_recipe(folder, **named, near_duplicates={"drop": False, "threshold": 0.9})
    assert run(recipe, folder / "out") == 0
    return SimpleNamespace(folder=folder, **read_splits(folder / "out", tiny_tokenizer))


def read_splits(folder, tokenizer) -> dict:
    manifest = read_manifest(folder)
    found = {split: {source["name"]: [] for source in manifest["sources"]} for split in ("train", "eval")}
    names = list(found["train"])
    for split, by_source in found.items():
        for row in (row for path in shard_files(folder, manifest, split) for row in read_rows(path)):
            pieces = np.split(row["input_ids"], row["seq_lengths"].cumsum()[:-1])
            for ids, source in zip(pieces, row["sources"], strict=True):
                asked = tokenizer.decode(ids).partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
                by_source[names[source]].append(" ".join(unicodedata.normalize("NFC", asked).split()).casefold())
    return {**found, "manifest": manifest}


def numbers(texts: list[str]) -> set[int]:
    return {int(one.rpartition(" q")[2]) for one in texts}


def test_no_question_is_in_both_splits(prepared):
    known, new = prepared.train["asked"], prepared.eval["asked"]
    assert not set(known) & set(new) and len(new) == 15 and len(set(new)) == 5
    assert len(set(known)) == NUM_QUESTIONS - 4 - 5  # four are those of the eval source
    assert prepared.manifest["recipe"]["group_by"] == "question"


def test_by_conversation_only_what_is_the_same_is_kept_together(prepared):
    known, new = prepared.train["talk"], prepared.eval["talk"]
    assert len(new) == 18 and len(known) == 162 and set(known) & set(new)


def test_by_a_column_its_values_are_kept_together(prepared):
    pages = [{number // 2 for number in numbers(split["pages"])} for split in (prepared.train, prepared.eval)]
    assert not pages[0] & pages[1] and len(pages[1]) == 3 and len(prepared.eval["pages"]) == 18


def test_rows_without_the_column_go_by_their_question_and_are_counted(prepared):
    assert not set(prepared.train["gaps"]) & set(prepared.eval["gaps"])
    notes = [note for note in prepared.manifest["notes"] if "nothing in column" in note]
    assert notes == [
        "source gaps: 30 rows have nothing in column 'page', which `group_by` names: they are grouped by their first "
        "question"
    ]


def test_similar_questions_are_kept_together(prepared):
    known, new = ({one.rstrip("?!") for one in split["similar"]} for split in (prepared.train, prepared.eval))
    assert not known & new and len(new) == 4 and len(prepared.eval["similar"]) == 12


def test_an_eval_source_is_eval_and_its_questions_are_not_trained(prepared):
    assert len(prepared.eval["own"]) == 10 and not prepared.train["own"]
    assert not set(prepared.eval["own"]) & {one for texts in prepared.train.values() for one in texts}
    counts = {source["name"]: source for source in prepared.manifest["sources"]}
    assert counts["asked"]["dropped"] == {"in_eval_source": 12} and counts["own"]["dropped"] == {}
    lines = [json.loads(line) for line in (prepared.folder / "out/dropped/asked.jsonl").read_text().splitlines()]
    detail = "is in one group of the eval split with row 0 of own"
    assert lines[0] == {"source": "asked", "row": 0, "reason": "in_eval_source", "detail": detail}


def test_a_column_that_no_row_has_is_refused(recipe_file, tmp_path, capsys):
    assert run(edit_recipe(recipe_file, group_by={"column": "pge"}), tmp_path / "out") == 2
    assert "source 'alpaca': `group_by` names column 'pge', but not one of its rows has" in capsys.readouterr().err
