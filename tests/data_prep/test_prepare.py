"""The whole preparation: nothing lost, the same bytes for any number of workers and after kills, clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from data_prep import inspect_shards, prepare
from data_prep.arrow_columns import int32_view, list_column
from data_prep.shards import MANIFEST, read_manifest, read_rows, shard_files
from tests.conftest import CORPUS, ROOT
from tests.support.preparation import NUM_ROWS, decoded_documents, edit_recipe, run, write_recipe
from tests.support.reading import all_bytes


def test_every_row_is_used_once_or_listed(recipe_file, tmp_path, tiny_tokenizer, capsys):
    assert run(recipe_file, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    alpaca, qa = manifest["sources"]
    assert (alpaca["rows"], alpaca["dropped"], alpaca["kept"]) == (NUM_ROWS, {"duplicate": 1, "empty_output": 1}, 118)
    assert (qa["rows"], qa["dropped"], qa["kept"]) == (NUM_ROWS, {"not_json": 1, "too_long": 1}, 118)
    found = decoded_documents(tmp_path / "out", tiny_tokenizer)
    assert sum(found.values()) == 118 + 118 and set(found.values()) == {1}
    turn = "<|im_start|>user\n0? {0}<|im_end|>\n<|im_start|>assistant\n0. {0}<|im_end|>\n".format(CORPUS[0])
    assert found[turn] == 1
    listed = [json.loads(line) for line in (tmp_path / "out/dropped/qa.jsonl").read_text().splitlines()]
    assert [(d["row"], d["reason"]) for d in listed] == [(3, "not_json"), (4, "too_long")]
    assert listed[0]["where"].endswith("qa.jsonl:4")  # the line to look at
    assert "duplicate 1, empty_output 1" in capsys.readouterr().out
    assert manifest["splits"]["eval"]["documents"] == 12  # 5 % of each source
    assert not (tmp_path / "out/.work").exists()


def test_the_inspection_finds_it_sound_and_shows_the_trained_tokens(recipe_file, tmp_path, capsys, monkeypatch):
    run(recipe_file, tmp_path / "out")
    monkeypatch.setenv("FORCE_COLOR", "1")
    capsys.readouterr()
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "is sound" in shown and "\033[1;32m" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "1"]) == 0
    plain = capsys.readouterr().out
    assert "\033" not in plain and "<|im_start|>assistant\n⟦" in plain and "<|im_end|>⟧" in plain


def test_the_same_bytes_with_one_and_two_workers(recipe_file, tmp_path):
    assert run(recipe_file, tmp_path / "one", 1) == 0
    assert run(recipe_file, tmp_path / "two", 2) == 0
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_the_same_bytes_however_much_is_gathered_and_sliced_at_once(recipe_file, tmp_path, monkeypatch):
    assert run(recipe_file, tmp_path / "whole") == 0
    monkeypatch.setattr("data_prep.stages.pack_stage._TOKENS_PER_GROUP", 400)
    monkeypatch.setattr("data_prep.shards.ROWS_PER_BATCH", 3)
    monkeypatch.setattr("data_prep.rendering.renderer._BYTES_PER_CALL", 200)
    monkeypatch.setattr("data_prep.sources.slices._SLICE_BYTES", 1000)
    assert run(recipe_file, tmp_path / "small") == 0
    for split in ("train", "eval"):
        rows = [
            [{k: v.tolist() for k, v in row.items()} for path in paths for row in read_rows(path)]
            for paths in (sorted((tmp_path / name / split).glob("*")) for name in ("whole", "small"))
        ]
        assert rows[0] == rows[1] and rows[0]
    found = [read_manifest(tmp_path / name)["splits"]["train"]["shards"] for name in ("whole", "small")]
    assert [[s["rows"], s["tokens"], s["max_token_id"]] for s in found[0]] == [
        [s["rows"], s["tokens"], s["max_token_id"]] for s in found[1]
    ]
    assert inspect_shards.main([str(tmp_path / "small"), "--rows", "0"]) == 0  # sizes and hashes


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_corrupted_shard_is_found(damage, recipe_file, tmp_path, capsys):
    run(recipe_file, tmp_path / "out")
    shard = tmp_path / "out/train/00000.arrow"
    data = bytearray(shard.read_bytes())
    if damage == "delete":
        shard.unlink()
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data if damage == "flip" else data[:-100])
    assert inspect_shards.main([str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "00000.arrow" in message
    assert {"flip": "expected sha256", "truncate": "bytes, found", "delete": "missing"}[damage] in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bad_rows": "refuse"}, "alpaca.json[9]: empty_output"),
        ({"too_long": "refuse", "bad_rows": "skip"}, "too_long"),
        ({"seq_len": 8}, "not one row of source 'alpaca' can be used: alpaca: 25 rows, dropped"),
        ({"tokenizer": "no/such/tokenizer"}, "'no/such/tokenizer' cannot be loaded"),
        ({"chat_template": "llama3"}, "needs the control token '<|start_header_id|>'"),
        ({"chat_template": "none"}, "'none' is not known: expected one of ['alpaca'"),
        ({"seqlen": 8}, "seqlen: unknown key; did you mean 'seq_len'?"),
        ({"eval_fraction": 2}, "eval_fraction: Input should be less than 1"),
        ({"sources": []}, "sources: List should have at least 1 item"),
    ],
)
def test_refusals_say_what_and_where(changes, message, recipe_file, tmp_path, capsys):
    assert run(edit_recipe(recipe_file, **changes), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_missing_column_and_a_missing_file_are_refused(recipe_file, tmp_path, capsys):
    sources = yaml.safe_load(recipe_file.read_text())["sources"]
    assert run(edit_recipe(recipe_file, sources=[{**sources[1], "form": "alpaca"}]), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "instruction" in error and "question" in error and "qa.jsonl" in error
    assert run(edit_recipe(recipe_file, sources=[{**sources[1], "path": "/nowhere.json"}]), tmp_path / "out") == 2
    assert "/nowhere.json" in capsys.readouterr().err


def test_help_and_a_bad_recipe_need_no_heavy_import(tmp_path):
    code = "import sys; from data_prep.prepare import main; main(['--recipe', 'none.yaml', '--output', 'x']);"
    code += "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]" and "recipe none.yaml: no such file" in result.stderr


def test_a_curriculum_orders_the_rows_by_stage(recipe_file, tmp_path):
    sources = yaml.safe_load(recipe_file.read_text())["sources"]
    staged = [{**sources[0], "stage": 1}, sources[1]]
    assert run(edit_recipe(recipe_file, order="curriculum", sources=staged), tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    rows = [row for path in shard_files(tmp_path / "out", manifest, "train") for row in read_rows(path)]
    stages = [{0: 1, 1: 0}[source] for row in rows for source in row["sources"].tolist()]
    assert stages == sorted(stages) and set(stages) == {0, 1}


@pytest.mark.parametrize("encoder", ["fastokens", "tiktoken"])
def test_any_encoder_gives_the_same_bytes_and_the_manifest_says_which_ran(recipe_file, tmp_path, capsys, encoder):
    if encoder == "fastokens":
        pytest.importorskip("fastokens", reason="fastokens is not installed: pip install -e '.[fast]'")
    fast, plain = tmp_path / "fast", tmp_path / "plain"
    for output, name in ((fast, encoder), (plain, "tokenizers")):
        arguments = ["--recipe", str(recipe_file), "--output", str(output), "--num-workers", "2"]
        assert prepare.main([*arguments, "--encoder", name]) == 0
    assert f"encoder: {encoder}" in capsys.readouterr().out
    found = {folder: all_bytes(folder) for folder in (fast, plain)}
    encoders = {folder: json.loads(files.pop(MANIFEST))["encoders"] for folder, files in found.items()}
    assert [name.split()[0] for name in encoders[fast]] == [encoder]
    assert [name.split()[0] for name in encoders[plain]] == ["tokenizers"]
    assert {**found[fast], "report.html": b"", "report.json": b""} == {
        **found[plain],
        "report.html": b"",
        "report.json": b"",
    }


def test_a_mapped_column_that_not_one_row_has_is_refused(recipe_file, tmp_path, capsys):
    """One row of 120 is enough."""
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["sources"][1]["columns"] = {"system": "persona"}
    edit_recipe(recipe_file, sources=recipe["sources"])
    assert run(recipe_file, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "source 'qa': `columns` gives 'persona' for system, but not one of its rows has that column" in error
    first = [{**s, "first": 20} if s["name"] == "qa" else s for s in recipe["sources"]]
    assert run(edit_recipe(recipe_file, sources=first), tmp_path / "trial") == 0
    assert "but not one of its `first` 20 rows has that column" in capsys.readouterr().out
    edit_recipe(recipe_file, sources=recipe["sources"])
    with (tmp_path / "qa.jsonl").open("a") as file:
        file.write(json.dumps({"question": "Who?", "answer": "I.", "persona": "You are kind."}) + "\n")
    assert run(recipe_file, tmp_path / "out") == 0


def test_what_preparation_wrote_is_no_input_of_it(recipe_file, tmp_path, capsys):
    assert run(recipe_file, tmp_path / "out") == 0
    recipe = yaml.safe_load(recipe_file.read_text())
    source = {**recipe["sources"][0], "path": f"{tmp_path}/**/*.jsonl"}
    assert list((tmp_path / "out" / "dropped").glob("*.jsonl"))
    assert run(edit_recipe(recipe_file, sources=[source]), tmp_path / "out") == 2
    assert "is a file that preparation itself writes into --output" in capsys.readouterr().err


def refuse(monkeypatch, *encoders):
    for name in encoders:
        monkeypatch.setattr(f"data_prep.tokenization.{name}_encoder.build", lambda *_: "it is not installed")


def test_without_a_faster_encoder_it_says_why(recipe_file, tmp_path, capsys, monkeypatch):
    refuse(monkeypatch, "fastokens", "tiktoken")
    assert run(recipe_file, tmp_path / "out") == 0
    why = ", as the faster encoder cannot be used: fastokens: it is not installed; tiktoken: it is not installed\n"
    assert why in capsys.readouterr().out


def test_with_the_second_encoder_it_says_why_not_the_first(recipe_file, tmp_path, capsys, monkeypatch):
    refuse(monkeypatch, "fastokens")
    assert run(recipe_file, tmp_path / "out") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoder: ")]
    assert line.startswith("encoder: tiktoken") and line.endswith(" (fastokens: it is not installed)")


def test_an_encoder_asked_for_by_name_that_cannot_be_used_is_refused(recipe_file, tmp_path, capsys, monkeypatch):
    refuse(monkeypatch, "fastokens")
    arguments = ["--recipe", str(recipe_file), "--output", str(tmp_path / "out"), "--encoder", "fastokens"]
    assert prepare.main(arguments) == 2
    error = capsys.readouterr().err
    assert "--encoder fastokens cannot be used (fastokens: it is not installed): take --encoder auto or" in error
    assert not (tmp_path / "out" / MANIFEST).exists()


TWO_ENDS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- generation %}{{- m.content }}"
    "{%- for c in m.tool_calls or [] %}{{- c.function.name }}{%- endfor %}"
    "{{- '<pad>' if m.tool_calls else '<|im_end|>' }}{%- endgeneration %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
).replace("{%- generation %}", "{%- if m.role != 'assistant' %}{{- m.content }}{%- else %}{%- generation %}", 1)


def test_the_manifest_names_every_id_that_ends_a_trained_turn(tmp_path, tiny_tokenizer):
    (tmp_path / "two.jinja").write_text(TWO_ENDS.replace("{%- endgeneration %}", "{%- endgeneration %}{%- endif %}"))
    call = {"role": "assistant", "tool_calls": [{"name": "look_up", "arguments": {}}]}
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, call]} for i in range(3)]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(
        tmp_path,
        tokenizer=tiny_tokenizer.name_or_path,
        chat_template=str(tmp_path / "two.jinja"),
        sources=[{"name": "calls", "path": str(tmp_path / "calls.jsonl"), "form": "messages"}],
    )
    assert prepare.main(["--recipe", str(recipe), "--output", str(tmp_path / "out")]) == 0
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "0"]) == 0
    ends = [tiny_tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<pad>")]
    assert read_manifest(tmp_path / "out")["end_token_ids"] == ends


def test_a_column_of_lists_takes_any_integers_and_reads_back_in_place():
    lists = [np.arange(3), np.array([], dtype=np.int64), np.array([7, 2**31 - 1], dtype=np.uint32)]
    column = list_column(lists)
    column.validate(full=True)
    assert column.to_pylist() == [a.tolist() for a in lists]
    assert int32_view(column.values[1:4]).tolist() == [1, 2, 7]
    assert int32_view(list_column([np.array([], dtype=np.int32)]).values).tolist() == []


def test_rows_of_the_same_ids_with_other_labels_are_no_duplicates(tmp_path, tiny_tokenizer, capsys):
    """Which answers are trained is part of what a row says: the first two rows differ in nothing else."""

    def row(*flags: bool) -> dict:
        answers = [{"role": "assistant", "content": f"Paris {i}.", "train": flag} for i, flag in enumerate(flags)]
        return {"messages": [turn for a in answers for turn in ({"role": "user", "content": "What?"}, a)]}

    rows = [row(True, False), row(False, True), row(True, True), row(True, False), row(False, False)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = write_recipe(
        tmp_path,
        tokenizer=tiny_tokenizer.name_or_path,
        eval_fraction=0.0,
        sources=[{"name": "flagged", "path": str(tmp_path / "rows.jsonl"), "form": "messages"}],
    )
    assert run(recipe, tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    [source] = manifest["sources"]
    assert (source["kept"], source["dropped"]) == (3, {"duplicate": 1, "no_trained_tokens": 1})
    lines = [json.loads(line) for path in (tmp_path / "out/dropped").glob("*.jsonl") for line in path.open()]
    assert [(d["row"], d["detail"]) for d in lines if d["reason"] == "duplicate"] == [(3, "repeats row 0 of flagged")]
    found = set()
    for path in shard_files(tmp_path / "out", manifest, "train"):
        for packed in read_rows(path):
            ids, labels = (np.split(packed[k], packed["seq_lengths"].cumsum()[:-1]) for k in ("input_ids", "labels"))
            found |= {(tuple(i.tolist()), tuple(one.tolist())) for i, one in zip(ids, labels, strict=True)}
    assert len(found) == 3 and len({ids for ids, _ in found}) == 1


def test_when_all_documents_are_held_out_it_says_that_none_is_left_to_train_on(tmp_path, tiny_tokenizer, capsys):
    (tmp_path / "one.jsonl").write_text(json.dumps({"question": "Who?", "answer": "I."}) + "\n")
    source = {"name": "one", "path": str(tmp_path / "one.jsonl"), "form": "question_answer"}
    recipe = write_recipe(tmp_path, tokenizer=tiny_tokenizer.name_or_path, eval_fraction=0.9, sources=[source])
    assert run(recipe, tmp_path / "out") == 2
    assert "no document is left to train on: one: 1 rows, dropped {}" in capsys.readouterr().err
