"""train.generate: the command, over an exported model that was taught two answers here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.taught_model import LESSONS, ask

ROOT = Path(__file__).resolve().parents[2]


def test_the_answer_alone_is_printed_and_it_ends_where_it_should(taught, capsys):
    for question, answer in LESSONS.items():
        ask(taught, "--prompt", question)
        assert capsys.readouterr().out == answer + "\n"


@pytest.mark.slow
def test_bytes_on_standard_output_are_utf8_in_any_locale_and_come_piece_by_piece(taught):
    """As a user runs it, in the C locale of a batch job; the question comes on standard input."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    question, answer = next(iter(LESSONS.items()))
    done = subprocess.run(
        [sys.executable, "-m", "train.generate", "--model", str(taught), "--prompt", "-"],
        input=question.encode() + b"\n",
        cwd=ROOT,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8") == answer + "\n"


def test_every_print_of_a_stream_is_whole_characters(taught, monkeypatch):
    prints: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *a, **k: prints.append("".join(a)))
    ask(taught, "--prompt", "사과는 왜 빨간가요?")
    assert "".join(prints) == next(iter(LESSONS.values()))
    assert len(prints) > 10 and not any("�" in p for p in prints)


def test_sampling_repeats_differ_and_a_seed_gives_them_again(tiny_model_dir, tmp_path, capsys):
    def answers(seed: str) -> list[str]:
        output = tmp_path / "answers.jsonl"
        sampling = ["--do_sample", "--temperature", "0.9", "--top_k", "40", "--top_p", "0.95", "--max_new_tokens", "12"]
        options = ["--prompt", "감기약?", "--repeat", "10", "--seed", seed, "--output", str(output)]
        ask(tiny_model_dir("llama"), *options, *sampling)
        return [json.loads(line)["answer"] for line in output.read_text(encoding="utf-8").splitlines()]

    first = answers("1")
    assert len(first) == 10 and len(set(first)) > 5
    assert answers("1") == first
    assert answers("2")[0] == first[1]  # answer i of seed s has seed s + i


def test_the_models_own_defaults_hold_until_a_flag_says_otherwise(taught, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(taught, model)
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "max_new_tokens": 2, "do_sample": True}))
    output = tmp_path / "o.jsonl"

    def new_tokens(*options: str) -> int:
        ask(model, "--prompt", "Say hello.", "--output", str(output), *options)
        return json.loads(output.read_text())["new_tokens"]

    assert new_tokens() == 2
    assert new_tokens("--max_new_tokens", "3") == 3
    assert new_tokens("--temperature", "0.1") == 2  # it samples by default, so this is no idle flag
    with pytest.raises(SystemExit, match="--temperature does nothing"):
        new_tokens("--do_sample", "false", "--temperature", "0.1")


def test_what_goes_wrong_is_one_line_and_keeps_an_earlier_output(taught, tmp_path):
    output = tmp_path / "answers.jsonl"
    output.write_text("earlier")
    long = "🍎" * 300
    with pytest.raises(SystemExit, match=r"the prompt has .* tokens, the context 512"):
        ask(taught, "--prompt", "Say hello.", "--prompt", long, "--output", str(output))
    assert output.read_text() == "earlier"
    with pytest.raises(SystemExit, match="cannot be written"):
        ask(taught, "--prompt", "x", "--output", str(tmp_path / "absent" / "o.jsonl"))


def test_help_and_errors_come_before_the_heavy_imports():
    code = (
        "import sys; from train import generate\n"
        "try: generate.main(sys.argv[1:])\n"
        "except SystemExit as error: print(error)\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    for arguments in (["--help"], ["--model", "/nonexistent", "--prompt", "x"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_a_conversation_in_the_terminal(taught, monkeypatch, capsys):
    lines = iter(["Say hello.", "/reset", "사과는 왜 빨간가요?"])

    def read(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    ask(taught, "--chat")
    shown = capsys.readouterr().out
    assert all(answer in shown for answer in LESSONS.values())


def test_an_answer_ends_after_a_stop_text(taught, capsys):
    ask(taught, "--prompt", "Say hello.", "--stop", "my")
    assert capsys.readouterr().out == "Hello, my\n"


def test_repeated_answers_are_compared(taught, capsys):
    ask(taught, "--prompt", "Say hello.", "--repeat", "2")
    assert "1 of 2 answers differ; two of them are alike by 1.00" in capsys.readouterr().out


def test_a_file_in_batches_is_answered_as_one_by_one(taught, tmp_path, capsys):
    prompts, found = tmp_path / "p.json", []
    prompts.write_text(json.dumps([*LESSONS, "Say hello."], ensure_ascii=False), encoding="utf-8")
    for size in ("1", "2"):
        output = tmp_path / f"{size}.jsonl"
        words = ["--batch_size", size, "--max_new_tokens", "60", "--output", str(output)]
        ask(taught, "--prompts", str(prompts), *words)
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        found.append((capsys.readouterr().out, [(row["answer"], row["new_tokens"], row["ended"]) for row in rows]))
    assert found[0] == found[1]
    assert [answer for answer, _, ended in found[0][1] if ended] == [*LESSONS.values(), LESSONS["Say hello."]]
