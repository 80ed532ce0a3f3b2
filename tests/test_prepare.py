"""The whole preparation: nothing lost, the same bytes for any number of workers and after kills, clear refusals."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep import inspect_shards, prepare, shards, tokenize_stage
from data_prep.job import open_job
from data_prep.recipe import load_recipe
from data_prep.shards import MANIFEST, int32_view, list_column, read_manifest, read_rows, shard_files
from tests.benchmarks.bench_memory import children
from tests.conftest import CORPUS, ROOT

NUM_ROWS = 120


@pytest.fixture
def recipe_file(tmp_path, tiny_tokenizer):
    """Two sources of several slices each: duplicates, an empty answer, a line that is not JSON, a long row."""
    rows = [
        {"instruction": f"{CORPUS[i % 8]} {i}", "input": "", "output": CORPUS[(i * 3) % 8]} for i in range(NUM_ROWS)
    ]
    rows[7] = rows[5]
    rows[9] = {**rows[9], "output": " "}
    (tmp_path / "alpaca.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = [
        json.dumps({"question": f"{i}? {CORPUS[i % 8]}", "answer": f"{i}. {CORPUS[i % 5]}"}) for i in range(NUM_ROWS)
    ]
    lines[3] = '{"question": "broken'
    lines[4] = json.dumps({"question": "long", "answer": CORPUS[3] * 40})
    (tmp_path / "qa.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write_recipe(
        tmp_path,
        tokenizer=tiny_tokenizer.name_or_path,
        sources=[
            {"name": "alpaca", "path": str(tmp_path / "alpaca.json"), "form": "alpaca"},
            {"name": "qa", "path": str(tmp_path / "qa.jsonl"), "form": "question_answer"},
        ],
    )


def write_recipe(folder: Path, **changes) -> Path:
    defaults = {"chat_template": "chatml", "seq_len": 256, "rows_per_slice": 25, "rows_per_shard": 8}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**defaults, **changes}), encoding="utf-8")
    return path


def edit_recipe(path: Path, **changes) -> Path:
    return write_recipe(path.parent, **{**yaml.safe_load(path.read_text()), **changes})


def run(recipe: Path, output: Path, workers: int = 1) -> int:
    return prepare.main(["--recipe", str(recipe), "--output", str(output), "--num-workers", str(workers)])


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def decoded_documents(folder: Path, tokenizer) -> Counter[str]:
    manifest, found = read_manifest(folder), Counter()
    for split in ("train", "eval"):
        for path in shard_files(folder, manifest, split):
            for row in read_rows(path):
                start = 0
                for length in row["seq_lengths"]:
                    found[tokenizer.decode(row["input_ids"][start : start + length])] += 1
                    start += length
    return found


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


def test_the_inspection_finds_it_sound_and_shows_the_trained_tokens(recipe_file, tmp_path, capsys):
    run(recipe_file, tmp_path / "out")
    capsys.readouterr()
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "is sound" in shown and "\033[1;32m" in shown


def test_the_same_bytes_with_one_and_two_workers(recipe_file, tmp_path):
    assert run(recipe_file, tmp_path / "one", 1) == 0
    assert run(recipe_file, tmp_path / "two", 2) == 0
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_the_same_bytes_however_much_is_gathered_and_sliced_at_once(recipe_file, tmp_path, monkeypatch):
    assert run(recipe_file, tmp_path / "whole") == 0
    monkeypatch.setattr("data_prep.pack_stage._TOKENS_PER_GROUP", 400)
    monkeypatch.setattr("data_prep.shards.ROWS_PER_BATCH", 3)
    monkeypatch.setattr("data_prep.rendering._BYTES_PER_CALL", 200)
    monkeypatch.setattr("data_prep.readers._SLICE_BYTES", 1000)
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


class Killed(BaseException):
    """Ends the process's work at once, as a kill would: nothing catches it."""


KILL_AT = ["tokenize", "plan", "pack", "manifest"]


@pytest.mark.parametrize("stage", KILL_AT)
def test_the_same_bytes_after_a_kill_in_each_stage(stage, recipe_file, tmp_path, monkeypatch):
    """A kill between any two writes of the stage: what is on disk then is what a SIGKILL leaves."""
    assert run(recipe_file, tmp_path / "whole") == 0
    names = {
        "tokenize": "alpaca-00002.npz",
        "plan": "duplicates.jsonl",
        "pack": "train-00001.json",
        "manifest": MANIFEST,
    }

    def killed(path: Path, data: bytes) -> None:
        if path.name == names[stage]:
            raise Killed
        real(path, data)

    real = shards.write_atomically
    with monkeypatch.context() as patched:
        for module in ("data_prep.parts", "data_prep.plan_stage", "data_prep.pack_stage", "data_prep.shards"):
            patched.setattr(f"{module}.write_atomically", killed)
        with pytest.raises(Killed):
            run(recipe_file, tmp_path / "killed")
    assert not (tmp_path / "killed" / MANIFEST).exists()
    (tmp_path / "killed/.manifest.json.host.1.tmp").write_text("half")
    assert run(recipe_file, tmp_path / "killed") == 0
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")


def test_the_same_bytes_after_a_real_kill_with_two_workers(recipe_file, tmp_path):
    command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(recipe_file)]
    command += ["--output", str(tmp_path / "killed"), "--num-workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/.work/tokenize-*/*.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    others = descendants(process.pid)
    assert len(others) >= 2  # the server, and a worker
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / MANIFEST).exists()
    deadline = time.monotonic() + 20
    while left := [pid for pid in others if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes {left} outlive the one that was killed"
        time.sleep(0.1)
    assert run(recipe_file, tmp_path / "killed", 2) == 0
    assert run(recipe_file, tmp_path / "whole", 1) == 0
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")


def test_a_complete_directory_is_left_alone_and_another_recipe_refused(recipe_file, tmp_path, capsys):
    run(recipe_file, tmp_path / "out")
    before = all_bytes(tmp_path / "out")
    assert run(recipe_file, tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(edit_recipe(recipe_file, seed=1), tmp_path / "out") == 2
    assert "made from another recipe" in capsys.readouterr().err
    assert all_bytes(tmp_path / "out") == before


def test_recipes_given_up_after_packing_leave_nothing_behind(recipe_file, tmp_path):
    """A packed, B packed with more and other shards, then A again: what is there is A's, to the byte."""
    one, text = tmp_path / "one", recipe_file.read_text()
    assert run(recipe_file, tmp_path / "whole") == 0
    for changes in ({}, {"rows_per_shard": 2, "seed": 1}):
        recipe, output = load_recipe(edit_recipe(recipe_file, **changes)), one
        prepare.prepare(recipe, output, stages=("tokenize", "plan", "pack"))
    recipe_file.write_text(text)
    assert run(recipe_file, one) == 0
    assert all_bytes(one) == all_bytes(tmp_path / "whole")


def test_another_end_token_in_the_tokenizers_configuration_is_another_job(recipe_file, tmp_path, tiny_tokenizer):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_tokenizer.name_or_path, folder)
    edit_recipe(recipe_file, tokenizer=str(folder), chat_template="alpaca")
    jobs = []
    for end in ("<|im_end|>", "<pad>"):
        configuration = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**configuration, "eos_token": end}))
        jobs.append(open_job(load_recipe(recipe_file), tmp_path / "out"))
    assert jobs[0].plan_dir != jobs[1].plan_dir and jobs[0].parts[0].folder != jobs[1].parts[0].folder


def test_input_that_changes_while_it_is_read_is_refused(recipe_file, tmp_path, monkeypatch, capsys):
    """The same number of rows, so that no slice notices."""

    def tokenize(part, how):
        real(part, how)
        os.utime(tmp_path / "qa.jsonl", ns=(1, 1))

    real = tokenize_stage.tokenize_part
    monkeypatch.setattr("data_prep.tokenize_stage.tokenize_part", tokenize)
    assert run(recipe_file, tmp_path / "out") == 2
    assert "source 'qa': its input changed while it was read" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/.work/tokenize-*/qa-*.json"))


def test_a_changed_mixture_reuses_the_tokenized_parts(recipe_file, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.plan_stage.plan", stop)
        with pytest.raises(Killed):
            run(recipe_file, tmp_path / "out")
    monkeypatch.setattr("data_prep.tokenize_stage.tokenize_part", stop)
    assert run(edit_recipe(recipe_file, seed=1), tmp_path / "out") == 0


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
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]" and "recipe none.yaml: no such file" in result.stderr


def test_a_curriculum_orders_the_rows_by_stage(recipe_file, tmp_path):
    sources = yaml.safe_load(recipe_file.read_text())["sources"]
    staged = [{**sources[0], "stage": 1}, sources[1]]
    assert run(edit_recipe(recipe_file, order="curriculum", sources=staged), tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    rows = [row for path in shard_files(tmp_path / "out", manifest, "train") for row in read_rows(path)]
    stages = [{0: 1, 1: 0}[source] for row in rows for source in row["sources"].tolist()]
    assert stages == sorted(stages) and set(stages) == {0, 1}


def test_the_stages_as_tasks_of_a_job_array_give_the_same_bytes(recipe_file, tmp_path, capsys):
    def stage(name, index=0, number=1):
        flags = [
            "--recipe",
            str(recipe_file),
            "--output",
            str(tmp_path / "tasks"),
            "--num-workers",
            "1",
            "--stage",
            name,
        ]
        return prepare.main([*flags, "--task-index", str(index), "--num-tasks", str(number)])

    assert run(recipe_file, tmp_path / "whole") == 0
    assert stage("tokenize", 2, 3) == stage("tokenize", 0, 3) == 0
    assert stage("plan") == 2
    assert "parts are not tokenized (the first numbers: [1, 4, 7]" in capsys.readouterr().err
    assert stage("tokenize", 1, 3) == stage("plan") == 0
    shown = capsys.readouterr().out  # the mixture is there before anything is packed
    assert all(name in shown.split() for name in ("asked", "got", "uses")) and "packing 0." in shown
    assert stage("pack", 1, 2) == 0
    assert stage("finish") == 2 and "run `--stage pack` first" in capsys.readouterr().err
    assert stage("pack", 0, 2) == stage("finish") == 0
    assert all_bytes(tmp_path / "tasks") == all_bytes(tmp_path / "whole")
    assert stage("tokenize", 3, 3) == 2 and "found 3 of 3" in capsys.readouterr().err
    assert stage("plan", 0, 2) == 2


def test_a_task_run_again_alone_repairs_what_it_left(recipe_file, tmp_path):
    flags = ["--recipe", str(recipe_file), "--output", str(tmp_path / "out"), "--num-workers", "1"]
    assert prepare.main([*flags, "--stage", "tokenize"]) == 0
    for marker in tmp_path.glob("out/.work/tokenize-*/qa-00002.json"):
        marker.unlink()
    assert prepare.main([*flags, "--stage", "plan"]) == 2
    assert prepare.main([*flags, "--stage", "tokenize"]) == prepare.main(flags) == 0


def test_tasks_share_the_copies_of_inputs_and_leave_none(recipe_file, tmp_path, monkeypatch):
    monkeypatch.delenv("PACKHAUL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    lines = (tmp_path / "qa.jsonl").read_text(encoding="utf-8").splitlines()[5:]
    rows = [json.dumps(json.loads(line), ensure_ascii=False) for line in lines]
    (tmp_path / "korean.jsonl").write_bytes("\n".join(rows).encode("cp949"))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[:40]).encode()))
    sources = [
        {"name": "detected", "path": [str(tmp_path / "korean.jsonl"), str(tmp_path / "packed.jsonl.gz")]},
        {"name": "stated", "path": str(tmp_path / "korean.jsonl"), "encoding": "cp949", "form": "question_answer"},
    ]
    edit_recipe(recipe_file, sources=sources, deduplicate=False)
    flags = ["--recipe", str(recipe_file), "--output", str(tmp_path / "out"), "--num-workers", "1"]
    assert prepare.main([*flags, "--stage", "tokenize", "--task-index", "1", "--num-tasks", "2"]) == 0
    copies = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/.work/inputs/*.jsonl*")}
    assert sum(not path.name.endswith(".lock") for path in copies) == 2
    assert prepare.main([*flags, "--stage", "tokenize", "--task-index", "0", "--num-tasks", "2"]) == 0
    assert copies == {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/.work/inputs/*.jsonl*")}
    assert prepare.main(flags) == 0
    assert not (tmp_path / "out/.work").exists() and not (tmp_path / "user").exists()
    manifest = read_manifest(tmp_path / "out")
    assert [s["encodings"] for s in manifest["sources"]] == [{"cp949": 1, "utf-8": 1}, {"cp949": 1}]


def test_a_complete_directory_is_known_without_reading_its_inputs(recipe_file, tmp_path, monkeypatch, capsys):
    sources = yaml.safe_load(recipe_file.read_text())["sources"]
    edit_recipe(recipe_file, sources=[{k: v for k, v in sources[0].items() if k != "form"}, sources[1]])
    run(recipe_file, tmp_path / "out")
    (tmp_path / "out/.work").mkdir()  # as a kill after the manifest leaves it
    monkeypatch.setattr("data_prep.job.slice_source", None)
    monkeypatch.setattr("data_prep.job.read_slice", None)
    assert run(recipe_file, tmp_path / "out") == 0 and "nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "out/.work").exists()
    assert run(edit_recipe(recipe_file, seed=1), tmp_path / "out") == 2
    edit_recipe(recipe_file, seed=42)
    (tmp_path / "qa.jsonl").write_text("{}\n")
    assert run(recipe_file, tmp_path / "out") == 2
    assert "made from another recipe, other input files" in capsys.readouterr().err


def test_either_encoder_gives_the_same_bytes_and_the_manifest_says_which_ran(recipe_file, tmp_path, capsys):
    fast, plain = tmp_path / "fast", tmp_path / "plain"
    assert run(recipe_file, fast) == 0
    assert "encoder: tiktoken" in capsys.readouterr().out
    arguments = ["--recipe", str(recipe_file), "--output", str(plain), "--num-workers", "2"]
    assert prepare.main([*arguments, "--encoder", "tokenizers"]) == 0
    found = {folder: all_bytes(folder) for folder in (fast, plain)}
    encoders = {folder: json.loads(files.pop(MANIFEST))["encoders"] for folder, files in found.items()}
    assert encoders[fast][0].startswith("tiktoken")
    assert encoders[plain][0].startswith("tokenizers")
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


def test_without_the_faster_encoder_it_says_why(recipe_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data_prep.fast_encoder.build", lambda *_: "tiktoken is not installed")
    assert run(recipe_file, tmp_path / "out") == 0
    assert "as the faster encoder cannot be used: tiktoken is not installed" in capsys.readouterr().out


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
