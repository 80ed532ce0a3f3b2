"""train.trace: what each step of real runs has seen, and what became of each raw row."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep.prepare import prepare
from data_prep.recipe import Recipe
from data_prep.shards import read_manifest
from tests.conftest import CORPUS
from tests.support.in_process import as_a_fresh_process
from tests.support.saving_runs import preempt, run_here, single_config
from train import trace
from train.loop.trainer import PackedSFTTrainer
from train.run.run_record import FILE

NUM_ROWS = 60
STEPS = 15  # of 4 rows, 6 an epoch: it ends in the third one
CUT = 8
DUPLICATE, EMPTY, NEVER = 7, 9, 30


def write_source(folder: Path, name: str, number: int) -> dict:
    rows = [{"question": f"{name} {i}? 왜", "answer": " ".join([CORPUS[i % 8]] * (1 + i % 5))} for i in range(number)]
    if name == "short":
        rows[DUPLICATE] = rows[5]
        rows[EMPTY] = {**rows[EMPTY], "answer": " "}
    paths = [folder / f"{name}{part}.jsonl" for part in (0, 1)]
    for path, part in zip(paths, (rows[: number // 3], rows[number // 3 :]), strict=True):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
    return {"name": name, "path": [str(path) for path in paths], "form": "question_answer"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def shards(folder, tiny_tokenizer):
    """Two sources: one used one and a half times, one of which a third is taken; a tenth held out."""
    sources = [{**write_source(folder, "short", NUM_ROWS), "repeat": 1.5}]
    sources += [{**write_source(folder, "long", NUM_ROWS), "take": 20}]
    recipe = {"tokenizer": tiny_tokenizer.name_or_path, "chat_template": "chatml", "seq_len": 256, "sources": sources}
    recipe |= {"rows_per_shard": 5, "rows_per_slice": 16, "eval_fraction": 0.1}
    prepare(Recipe.model_validate(recipe), folder / "shards", num_workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def run(folder, shards, tiny_model_dir):
    """A run that is preempted in step 8 and resumed; and, by step, the ids of every document that it saw."""
    seen: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    original = PackedSFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        ends = inputs["cu_seq_lens_q"].tolist()
        ids = inputs["input_ids"][0].tolist()
        step = self.state.global_step + 1
        seen[step] += [tuple(ids[a:b]) for a, b in pairwise(ends)]
        if step == CUT and not resumed:
            preempt()
        return original(self, model, inputs, *args, **kwargs)

    options = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama"))}
    options |= {"output_dir": str(folder / "run"), "max_steps": STEPS, "per_device_train_batch_size": 2}
    options |= {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 100, "data_seed": 11}
    config = single_config(folder / "run.yaml", **options)
    resumed: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedSFTTrainer, "training_step", training_step)
        assert run_here(config) == 0
        half = folder / "half"
        shutil.copytree(folder / "run", half)
        resumed.append(True)
        assert run_here(config) == 0
    return folder / "run", half, dict(seen)


def traced(capsys, *words: object) -> dict:
    assert trace.main([str(word) for word in (*words, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def ids_of(shards):
    """The ids of a document that is listed for a step."""
    from data_prep.packed_rows import PackedRows
    from data_prep.provenance import Provenance

    manifest = read_manifest(shards)
    rows, provenance = PackedRows(shards, manifest, "train"), Provenance.open(shards, manifest)
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    names = [source["name"] for source in manifest["sources"]]
    documents = (document for row in range(len(rows)) for document in rows.documents(row))
    for number, document in zip(provenance.uses["train"].tolist(), documents, strict=True):
        record = provenance.records[number]
        found[names[record["source"]], int(record["row"])] = tuple(document.input_ids.tolist())
    return found


def test_every_step_lists_what_it_saw(run, ids_of, capsys):
    """Equality of ids for every step, over epochs and a resume in the middle of one."""
    folder, _, seen = run
    assert sorted(seen) == list(range(1, STEPS + 1))
    epochs = []
    for step, documents in seen.items():
        entry = traced(capsys, folder, "--step", step)
        listed = Counter(ids_of[d["source"], d["row"]] for d in entry["documents"])
        real = Counter(ids for ids in documents if len(ids) > 1)  # a filler row is one token
        assert listed == real and entry["filler_rows"] == len(documents) - real.total()
        assert entry["packed_rows"] + entry["filler_rows"] == 4 and entry["state"] == "trained"
        assert all(d["tokens"] == len(ids_of[d["source"], d["row"]]) for d in entry["documents"])
        epochs.append(entry["epoch"])
    assert sorted(set(epochs)) == [1, 2, 3]
    assert any(len(ids) == 1 for documents in seen.values() for ids in documents), "no filler row was seen"


def test_every_row_has_the_steps_that_saw_it_or_a_reason(run, ids_of, capsys):
    folder, _, seen = run
    reasons = Counter()
    for source in ("short", "long"):
        for row in range(NUM_ROWS):
            entry = traced(capsys, folder, "--document", f"{source}:{row}")
            trained = [use["step"] for d in entry["documents"] for use in d["steps"] if use["state"] == "trained"]
            ids = ids_of.get((source, row))
            assert trained == sorted(step for step, ds in seen.items() for _ in range(ds.count(ids)))
            part = "0" if row < NUM_ROWS // 3 else "1"
            assert Path(entry["file"]).name == f"{source}{part}.jsonl"
            if not trained:
                (reason,) = {*(d["why_not"] for d in entry["documents"]), *(d["reason"] for d in entry["dropped"])} - {
                    "dropped: duplicate"
                }
                reasons[reason.partition(" (")[0]] += 1
    held_out = sum(s["eval_documents"] for s in read_manifest(ids_dir(run))["sources"])
    assert reasons["held out: it is in the eval split"] == held_out > 2
    assert reasons["not selected for the mixture"] == NUM_ROWS - 20
    assert reasons["duplicate"] == reasons["empty_output"] == 1


def ids_dir(run) -> Path:
    return Path(json.loads((run[0] / FILE).read_text())["data"])


def test_a_dropped_row_has_its_reason(run, capsys):
    assert trace.main([str(run[0]), "--document", f"short:{EMPTY}"]) == 0
    out = capsys.readouterr().out
    assert "0 document(s)" in out and "dropped: empty_output:" in out
    assert trace.main([str(run[0]), "--document", f"short:{DUPLICATE}"]) == 0
    assert "dropped: duplicate: repeats row 5 of short" in capsys.readouterr().out


def test_a_preempted_run_says_what_is_not_reached_yet(run, capsys):
    half = run[1]
    assert traced(capsys, half, "--step", CUT)["state"] == "trained"
    assert traced(capsys, half, "--step", CUT + 1)["state"] == "planned"
    assert trace.main([str(half), "--step", "9"]) == 0
    assert "step 9 of 15, epoch 2, not reached yet:" in capsys.readouterr().out


def test_the_last_epoch_s_tail_is_after_the_end(run, capsys):
    """15 steps end in the third epoch: its other rows have steps that the run does not have."""
    states = {
        use["state"]
        for row in range(NUM_ROWS)
        for d in traced(capsys, run[0], "--document", f"short:{row}")["documents"]
        for use in d["steps"]
        if use["step"] > STEPS
    }
    assert states == {"never"}


def test_a_text_is_found_in_documents_and_in_dropped_rows(run, capsys):
    found = traced(capsys, run[0], "--text", "short 11? 왜")
    assert [(m["source"], m["row"]) for m in found["matches"]] == [("short", 11)]
    found = traced(capsys, run[0], "--text", f"short {EMPTY}? 왜")
    assert [m["dropped"][0]["reason"] for m in found["matches"]] == ["empty_output"]
    assert trace.main([str(run[0]), "--text", "nowhere at all"]) == 1
    assert "0 raw row(s) hold the text" in capsys.readouterr().out


def test_decode_prints_the_texts(run, capsys):
    found = traced(capsys, run[0], "--step", "1", "--decode")
    assert all(f"{d['source']} {d['row']}? 왜" in d["text"] for d in found["documents"])
    assert trace.main([str(run[0]), "--step", "1", "--decode"]) == 0
    assert found["documents"][0]["text"] in capsys.readouterr().out


def test_a_skipped_step_is_named(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run[1], copy)
    (copy / "bad_steps").mkdir()
    (copy / "bad_steps" / "step-3.json").write_text(json.dumps({"reason": "the loss is nan"}))
    assert trace.main([str(copy), "--step", "3"]) == 0
    assert "bad step: the loss is nan" in capsys.readouterr().out


def edit_record(run_dir: Path, **changes: object) -> None:
    record = json.loads((run_dir / FILE).read_text())
    (run_dir / FILE).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "0"], "expected a step from 1 to 15 of the run, found 0"),
        (["--step", "16"], "expected a step from 1 to 15 of the run, found 16"),
        (["--document", "short"], "expected SOURCE:ROW, such as faq:17, found 'short'"),
        (["--document", "none:1"], "there is no source 'none' in"),
        (["--document", "short:60"], "has 60 raw rows, from 0 to 59; there is no 60"),
        (["--text", ""], "--text: expected some text"),
        (["--document", "short:1", "--decode"], "--decode does nothing without --step"),
        (["--step", "1", "--data", "/nowhere"], "no such directory"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_answered(run, words, said, capsys):
    assert trace.main([str(run[0]), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trace: error: ") and said in error


def test_no_run(tmp_path, capsys):
    assert trace.main([str(tmp_path), "--step", "1"]) == 2
    assert "expected a run directory" in capsys.readouterr().err


class TestRecord:
    """What decides the order has to be recorded, and in one way."""

    @pytest.fixture
    def copy(self, run, tmp_path):
        shutil.copytree(run[1], tmp_path / "run")
        return tmp_path / "run"

    def test_a_checkpoint_s_marker_is_enough(self, copy, capsys):
        edit_record(copy, order={})
        assert traced(capsys, copy, "--step", 4)["documents"]

    def test_nothing_recorded_is_refused(self, copy, capsys):
        edit_record(copy, order={})
        shutil.rmtree(copy / "checkpoint-8")
        assert trace.main([str(copy), "--step", "4"]) == 2
        assert "nor a checkpoint says rows_per_step, as an older version started the run" in capsys.readouterr().err

    def test_two_ways_are_refused(self, copy, capsys):
        order = json.loads((copy / FILE).read_text())["order"]
        edit_record(copy, order={**order, "rows_per_step": 8})
        assert trace.main([str(copy), "--step", "4"]) == 2
        assert "rows_per_step is recorded as 8 and as 4: the order is not known" in capsys.readouterr().err

    def test_other_shards_are_refused(self, copy, capsys):
        edit_record(copy, manifest_sha256="0" * 64)
        assert trace.main([str(copy), "--step", "4"]) == 2
        assert "holds other shards than the run was trained on" in capsys.readouterr().err


def test_it_imports_no_model_code(run):
    import subprocess
    import sys

    code = "import sys; from train import trace; code = trace.main(sys.argv[1:])\n"
    code += "print(code, [m for m in ('transformers.trainer', 'trl', 'deepspeed', 'peft') if m in sys.modules])"
    words = [sys.executable, "-c", code, str(run[0]), "--document", "short:1"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ}, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_run_s_files_are_left_as_they_are(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run[0].rglob("*")}
    with as_a_fresh_process():
        traced(capsys, run[0], "--step", 1)
    assert before == {path: path.stat().st_mtime_ns for path in run[0].rglob("*")}
