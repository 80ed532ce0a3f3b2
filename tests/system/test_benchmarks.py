"""Every benchmark runs, tiny, to its last line, which is one line of JSON; and is started in one way."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.benchmarks import (
    at_scale,
    bench_prepare,
    quickstart,
    quickstart_commands,
    quickstart_model,
    task_type_accuracy,
)
from tests.conftest import CORPUS, ROOT, save_tiny_model
from tests.support import commands_here
from tests.support.in_process import as_a_fresh_process

FOLDER = ROOT / "tests/benchmarks"
BENCHMARKS = sorted(f.stem for f in FOLDER.glob("*.py") if '__name__ == "__main__"' in f.read_text(encoding="utf-8"))


class Tiny(NamedTuple):
    """A run in seconds. `{data}` is a folder as ../shared/data, `{folder}` one to write into."""

    options: str = ""
    figures: str = ""  # names that the last line must have, among others
    here: bool = False  # the commands that it starts run in this process
    code: int = 0


TINY = {
    "at_scale": Tiny("--block-mib 1", "measured assumed derived"),
    "bench_documentwise": Tiny("--data {data} --seq-lens 256 --steps 1", "padding step"),
    "bench_fit": Tiny("--hidden 64 --layers 3 --tokens 256 --only full", "full worst"),
    "bench_memory": Tiny("--size-gb 0.0002 --num-workers 1", "peak_gib_per_worker stages"),
    "bench_packing": Tiny("--data {data} --seq-lens 256 512", "alpaca alpaca_joined"),
    "bench_plan": Tiny("--documents 2000 --curve 3000", "seconds cpu_seconds peak_gib efficiency curve"),
    "bench_prepare": Tiny("--data {data} --repeats 1", "share_of_raw ratio_to_trl cpu profile gemma3", here=True),
    "bench_readers": Tiny("--size-gb 0.0005", "rows forms", here=True),
    "bench_resume_position": Tiny("--step 100", "seconds_at_10 seconds_at_100 ratio accelerate_ratio"),
    "bench_save": Tiny("--hidden 32 --layers 1 --saves 2", "stall_seconds sync_seconds ratio equal"),
    "bench_startup": Tiny(
        "--data {data} --rounds 2", "packhaul trl_rows packhaul_to_trl_rows packhaul_python_to_trl_text", here=True
    ),
    "bench_step": Tiny("--rounds 1 --sizes 0.2M", "ratio_to_bare trl_ratio_to_bare data_wait_share"),
    "roofline": Tiny("--cases 1.7B_full_eager", "device cases"),
    # Nothing is learnt from so few rows: it says so, and ends with 1.
    "quickstart": Tiny("--output {folder}/quickstart", "before after seconds", code=1),
    "real_data": Tiny("--data {data} --output {folder} --steps 2", "mixture stories260K", here=True),
    "task_type_accuracy": Tiny("--data {data}", "dolly_12 logickor_35 alpaca_fresh koalpaca_fresh rows_per_second"),
    "trl_training": Tiny("--model {data}/models/stories260K-hf --data {data}/text/en/alpaca_52k.json --output {folder}",
                         "rows loss"),
}  # fmt: skip
# Run tiny by others: a test of its own, or the benchmark that reads its last line.
ELSEWHERE = {
    "bench_gpu": "tests/system/test_bench_gpu.py",
    "chaos": "tests/system/test_chaos.py",
    "model_sweep": "tests/system/test_model_sweep.py",
    "trl_preparation": "tests/benchmarks/bench_prepare.py",
}


def test_every_benchmark_has_a_tiny_run():
    assert sorted([*TINY, *ELSEWHERE]) == BENCHMARKS
    assert all(name in (ROOT / file).read_text(encoding="utf-8") for name, file in ELSEWHERE.items())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_started_as_a_file_it_says_how_it_is_started(name):
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, cwd=ROOT)
    hint = f"start it from the repository root: python -m tests.benchmarks.{name}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", hint)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_tokenizer):
    """Files, tokenizers and a model by the names of ../shared/data, tiny."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "text")
    save_tokenizer(folder / "tokenizers/qwen3", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"])
    turns = ["<start_of_turn>", "<end_of_turn>"]
    save_tokenizer(folder / "tokenizers/gemma3", eos_token="<eos>", bos_token="<bos>", additional_special_tokens=turns)
    save_tiny_model("llama", tiny_tokenizer, folder / "models/stories260K-hf", {"max_position_embeddings": 2048})
    return folder


def save_tokenizer(folder: Path, **special: Any) -> None:
    """Byte-level BPE whose control tokens are, as in Qwen's, no part of the model's vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=640, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", **special).save_pretrained(folder)


def write_texts(folder: Path) -> None:
    """Rows with the columns of the real files."""
    numbers = range(160)
    alpaca = [{"instruction": f"{i}. {CORPUS[i % 8]}", "input": "", "output": CORPUS[-i % 8]} for i in numbers]
    questions = [{"instruction": f"Again: {row['instruction']}", "text": row["output"]} for row in alpaca]
    dolly = [{**row, "context": "", "response": "Yes.", "category": "open_qa"} for row in alpaca[:3]]
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    medical = [{"question": row["instruction"], "answer": row["output"]} for row in alpaca[:40]]
    files: dict[str, list[Any]] = {
        "en/alpaca_52k.json": alpaca,
        "en/dolly_6400_no_context.jsonl": questions,
        "en/dolly_12_full_columns.json": dolly,
        "ko/koalpaca_v1_11432.json": alpaca[80:],
        "ko/logickor_42_messages.jsonl": [{"messages": turns, "category": "수학(Math)"}] * 2,
        "med/medquad_nih.jsonl": medical,
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def smaller(tmp_path, monkeypatch):
    """What no option makes small, by benchmark."""

    def labels() -> None:
        found = {"written_with": {"explanation": [0, 2]}, "fresh": {"other": [1, 3]}}
        (tmp_path / "labels.json").write_text(json.dumps({"alpaca": found, "koalpaca": found}))
        monkeypatch.setattr(task_type_accuracy, "LABELS", tmp_path / "labels.json")

    def rows() -> None:
        monkeypatch.setattr(quickstart, "TRAIN_ROWS", 30)
        monkeypatch.setattr(quickstart, "HELD_OUT_ROWS", 2)
        monkeypatch.setattr(quickstart_model, "MIN_FREQUENCY", 20)
        monkeypatch.setattr(quickstart_commands, "subprocess", commands_here.Here)
        monkeypatch.chdir(ROOT)

    def without_strace() -> None:
        monkeypatch.setattr(at_scale.shutil, "which", lambda name: None)

    made: dict[str, Callable[[], None]] = {"task_type_accuracy": labels, "quickstart": rows, "at_scale": without_strace}
    return lambda name: made.get(name, lambda: None)()


def refuse(word: str) -> None:
    """NaN and infinities are no JSON."""
    raise AssertionError(f"the last line holds {word}")


@pytest.mark.parametrize("name", TINY)
def test_ends_with_one_line_of_json(name, data, smaller, tmp_path, monkeypatch, capsys):
    tiny, module = TINY[name], importlib.import_module(f"tests.benchmarks.{name}")
    smaller(name)
    if tiny.here:
        monkeypatch.setattr(module, "subprocess", commands_here.Here)
    with as_a_fresh_process():
        code = module.main(tiny.options.format(data=data, folder=tmp_path).split())
    said = capsys.readouterr()
    assert code == tiny.code, said.err[-3000:]
    figures = json.loads(said.out.splitlines()[-1], parse_constant=refuse)
    assert set(figures) >= set(tiny.figures.split())


def test_encoders_by_processor_time(data, capsys):
    with as_a_fresh_process():
        assert bench_prepare.main(["--data", str(data), "--processor-time", "1"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)
    for name in ("qwen3", "gemma3"):
        assert set(figures[name]["share_of_raw_cpu"]) == set(figures[name]["profile"]) >= {"tokenizers"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_calls_that_name_a_file(tmp_path):
    (tmp_path / "big").write_bytes(bytes(3 * 2**20))
    code = "import os, sys\nfor _ in range(500): os.close(os.open(sys.argv[1], os.O_RDONLY))\nopen(sys.argv[1]).read()"
    command = [sys.executable, "-I", "-S", "-c"]
    plain = at_scale.start_up([*command, "import os, sys"], tmp_path / "plain")
    read = at_scale.start_up([*command, code, str(tmp_path / "big")], tmp_path / "read")
    assert 500 <= read["file_calls"] - plain["file_calls"] < 520
    assert read["mib_read"] - plain["mib_read"] == 3
