"""data_prep.provenance: every document of the shards, and every raw row, is found again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep import inspect_shards
from data_prep.mixture import documents as mixture
from data_prep.packed_rows import PackedRows
from data_prep.provenance import FOLDER, SPLIT_NAMES, Provenance, file_of
from data_prep.shards import SPLITS, read_manifest, write_manifest
from tests.support.preparation import NUM_ROWS, edit_recipe, run


@pytest.fixture
def shards(recipe_file, tmp_path):
    assert run(recipe_file, tmp_path / "out") == 0
    return tmp_path / "out"


def test_split_names_are_the_plan_s_codes():
    assert [SPLIT_NAMES[code] for code in (mixture.TRAIN, mixture.EVAL, mixture.UNUSED)] == ["train", "eval", "unused"]


def test_each_document_in_the_shards_is_that_of_its_raw_row(shards, tiny_tokenizer, tmp_path):
    manifest = read_manifest(shards)
    provenance = Provenance.open(shards, manifest)
    raw = [json.loads((tmp_path / "alpaca.json").read_text()), (tmp_path / "qa.jsonl").read_text().splitlines()]
    counts = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        rows = PackedRows(shards, manifest, split)
        documents = (document for row in range(len(rows)) for document in rows.documents(row))
        for number, document in zip(provenance.uses[split], documents, strict=True):
            record = provenance.records[number]
            assert SPLIT_NAMES[record["split"]] == split and record["source"] == document.source
            row = raw[record["source"]][record["row"]]
            question = row["instruction"] if record["source"] == 0 else json.loads(row)["question"]
            assert question in tiny_tokenizer.decode(document.input_ids)
            counts[split] += 1
    assert counts == {split: manifest["splits"][split]["documents"] for split in SPLITS} and min(counts.values()) > 3


def test_each_raw_row_has_documents_or_a_reason(shards):
    provenance = Provenance.open(shards, read_manifest(shards))
    for source in ("alpaca", "qa"):
        for row in range(NUM_ROWS):
            used = [provenance.records[n]["copies"] > 0 for n in provenance.documents_of(source, row)]
            assert any(used) != bool(list(provenance.dropped(source, row)))


def test_several_rows_made_of_one(recipe_file, tmp_path, tiny_tokenizer):
    path = tmp_path / "several.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": ["a", "b", f"c{i}"]}) + "\n" for i in range(9)))
    source = {"name": "qa", "path": str(path), "form": "question_answer", "answers": "each"}
    assert run(edit_recipe(recipe_file, tokenizer=tiny_tokenizer.name_or_path, sources=[source]), tmp_path / "o") == 0
    provenance = Provenance.open(tmp_path / "o", read_manifest(tmp_path / "o"))
    assert [provenance.documents_of("qa", row).size for row in range(9)] == [3] * 9


def test_files_are_the_same_for_any_number_of_workers(shards, recipe_file, tmp_path):
    assert run(recipe_file, tmp_path / "two", workers=2) == 0
    for name in ("all", "train", "eval"):
        assert (shards / file_of(name)).read_bytes() == (tmp_path / "two" / file_of(name)).read_bytes()


def test_a_changed_file_is_found(shards, capsys):
    path = shards / file_of("train")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert inspect_shards.main([str(shards), "--rows", "0"]) == 1
    assert f"{FOLDER}/train.npy: expected sha256" in capsys.readouterr().err


def test_files_of_other_shards_are_refused(shards):
    np.save(shards / file_of("eval"), np.arange(2))
    with pytest.raises(ValueError, match=r"expected .* documents, found 2"):
        Provenance.open(shards, read_manifest(shards))


def test_a_directory_of_an_older_version_says_so(shards):
    manifest = {key: value for key, value in read_manifest(shards).items() if key not in ("documents", "sha256")}
    write_manifest(shards, manifest)
    with pytest.raises(ValueError, match="an older version prepared it"):
        Provenance.open(shards, read_manifest(shards))
