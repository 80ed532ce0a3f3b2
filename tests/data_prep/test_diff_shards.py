"""data_prep.diff_shards: what is changed in a preparation is what is said to differ, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_prep import diff_shards
from data_prep.shards import read_manifest, write_manifest
from tests.support.preparation import edit_recipe, run


@pytest.fixture
def prepared(recipe_file, tmp_path):
    """Factory: shards of the recipe with changes."""

    def prepare(name: str, **changes):
        assert run(edit_recipe(recipe_file, **changes), tmp_path / name) == 0
        return tmp_path / name

    return prepare


def diff(capsys, *words) -> tuple[int, dict]:
    capsys.readouterr()
    code = diff_shards.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def numbers(found: dict) -> dict[str, int]:
    return {kind["kind"]: kind["documents"] for kind in found["documents"]["differ"] if kind["documents"]}


def test_the_same_recipe_gives_no_difference(prepared, capsys):
    a, b = prepared("a"), prepared("b")
    code, found = diff(capsys, a, b)
    assert (code, found["equal"], numbers(found)) == (0, True, {})
    total = sum(s["train_documents"] + s["eval_documents"] for s in read_manifest(a)["sources"])
    assert found["documents"]["same"] == total
    assert diff_shards.main([str(a), str(b), "--examples", "0"]) == 0
    assert capsys.readouterr().out == f"{a} and {b} hold the same\n"


def test_a_row_less_a_row_more_and_a_row_twice(prepared, recipe_file, tmp_path, capsys):
    a = prepared("a", eval_fraction=0.0)
    path = tmp_path / "qa.jsonl"
    lines = path.read_text().splitlines()
    lines[11] = json.dumps({"question": "새로운 질문?", "answer": "네."})
    path.write_text("\n".join(lines) + "\n")
    b = prepared("b", eval_fraction=0.0)
    code, found = diff(capsys, a, b)
    assert code == 1 and numbers(found) == {"used in A only": 1, "used in B only": 1}
    assert [kind["examples"] for kind in found["documents"]["differ"][:2]] == [["qa:11"], ["qa:11"]]
    keys = {entry["key"].rpartition(".")[2] for entry in found["made_from"]}
    assert all(entry["key"].startswith("inputs.qa") for entry in found["made_from"]) and keys
    sources = yaml.safe_load(recipe_file.read_text())["sources"]
    sources[0]["repeat"] = 2
    c = prepared("c", eval_fraction=0.0, sources=sources)
    code, found = diff(capsys, b, c)
    kept = read_manifest(c)["sources"][0]["train_documents"]
    assert code == 1 and numbers(found) == {"used another number of times": kept}
    assert found["made_from"] == [{"key": "recipe.sources.alpaca.repeat", "a": None, "b": 2.0}]
    assert {"key": "sources.alpaca.train_uses", "a": kept, "b": 2 * kept} in found["counts"]


def test_documents_that_change_sides(prepared, capsys):
    a, b = prepared("a", eval_fraction=0.1), prepared("b", eval_fraction=0.1, seed=43)
    code, found = diff(capsys, a, b)
    moved = numbers(found)
    assert code == 1 and moved.keys() == {"train in A, eval in B", "eval in A, train in B"}
    evals = [sum(s["eval_documents"] for s in read_manifest(side)["sources"]) for side in (a, b)]
    assert moved["train in A, eval in B"] - moved["eval in A, train in B"] == evals[1] - evals[0]
    assert found["made_from"] == [{"key": "recipe.seed", "a": 42, "b": 43}]
    assert diff_shards.main([str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert "recipe.seed" in out and f"train in A, eval in B {moved['train in A, eval in B']:>25}" in out


def edited_copy(shards: Path, name: str, edit: Callable[[dict], object]) -> Path:
    """A copy whose manifest is another."""
    copy = shards.with_name(name)
    shutil.copytree(shards, copy)
    manifest = {key: value for key, value in read_manifest(copy).items() if key != "sha256"}
    edit(manifest)
    write_manifest(copy, manifest)
    return copy


def test_what_makes_all_contents_differ_or_none_is_said(prepared, capsys):
    a = prepared("a")
    template = edited_copy(a, "template", lambda manifest: manifest.update(chat_template_sha256="0" * 64))
    assert diff(capsys, a, template)[1]["documents"]["note"].startswith("the chat templates differ")
    # As of a version of a library that packs otherwise.
    bytes_ = edited_copy(a, "bytes", lambda manifest: manifest["splits"]["train"]["shards"][0].update(sha256="0" * 64))
    code, found = diff(capsys, a, bytes_)
    assert code == 1 and not found["same_shard_files"] and numbers(found) == {}


def test_what_cannot_be_read_is_exit_code_2(prepared, tmp_path, capsys):
    a = prepared("a")
    assert diff_shards.main([str(a), str(tmp_path / "absent")]) == 2
    assert "diff_shards: error: shard directory" in capsys.readouterr().err
    shutil.rmtree(a / "documents")
    assert diff_shards.main([str(a), str(a)]) == 2
    assert diff_shards.main([str(a), str(a), "--examples", "-1"]) == 2


def test_only_a_long_value_is_cut_in_the_table():
    """With its quotes 38 and 39 characters wide."""
    cells = [diff_shards._cell({"a": "x" * length}, "a") for length in (36, 37)]
    assert cells == [f'"{"x" * 36}"', f'"{"x" * 34}...']
