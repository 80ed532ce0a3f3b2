"""train.generate: the command, over an exported model that was taught two answers here."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_runs import run_export
from train import generate
from train.checkpoint.folders import publish

ROOT = Path(__file__).resolve().parents[2]
LESSONS = {
    "사과는 왜 빨간가요?": "안토시아닌이라는 색소 때문입니다 🍎👩‍⚕️!",
    "Say hello.": "Hello, my friend.",
}


@pytest.fixture(scope="module")
def taught(tiny_model_dir, tiny_tokenizer, tmp_path_factory) -> Path:
    """The export of a tiny model that has learnt LESSONS by heart."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in LESSONS.items()]
    batch = tiny_tokenizer.apply_chat_template(chats, return_dict=True, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("taught")
    model.save_pretrained(folder / "run")
    tiny_tokenizer.save_pretrained(folder / "run")
    publish(folder / "run", step=150, world_size=1, extra={})
    run_export(folder / "run", folder / "export")
    return folder / "export"


def ask(model: Path, *options: str) -> None:
    generate.main(["--model", str(model), *options])


def test_the_answer_alone_is_printed_and_it_ends_where_it_should(taught, capsys):
    for question, answer in LESSONS.items():
        ask(taught, "--prompt", question)
        assert capsys.readouterr().out == answer + "\n"


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


def test_several_prompts_base_and_tuned_side_by_side_repeated_and_recorded(taught, tiny_model_dir, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    base = tiny_model_dir("qwen3")
    questions = list(LESSONS)
    options = ["--prompt", questions[0], "--prompt", questions[1], "--base_model", str(base), "--repeat", "2"]
    ask(taught, *options, "--max_new_tokens", "60", "--output", str(output), "--seed", "7")
    captured = capsys.readouterr()
    assert captured.err.count("does not sample: all answers will be the same") == 4
    for number, (question, answer) in enumerate(LESSONS.items(), 1):
        assert f"[{number}/2] {question}\nbase 1> " in captured.out
        assert f"tuned 1> {answer}\ntuned 2> {answer}\n" in captured.out
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(r["model"], r["repeat"], r["seed"]) for r in rows] == [
        (str(m), r, 7 + r) for _ in questions for m in (base, taught) for r in (0, 1)
    ]
    tuned = [r for r in rows if r["model"] == str(taught)]
    assert [r["answer"] for r in tuned] == [a for a in LESSONS.values() for _ in range(2)]
    assert all(r["ended"] and r["new_tokens"] < 60 for r in tuned)
    assert rows[0]["messages"] == [{"role": "user", "content": questions[0]}]
    assert rows[0]["options"] == {"max_new_tokens": 60}
    assert not any(r["ended"] for r in rows if r["model"] == str(base) and r["new_tokens"] == 60)


def test_a_base_model_without_a_template_is_asked_through_the_tuned_ones(taught, tiny_model_dir, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(taught, base)
    (base / "chat_template.jinja").unlink()
    (base / "generation_config.json").unlink()
    ask(taught, "--prompt", "Say hello.", "--base_model", str(base))
    captured = capsys.readouterr()
    assert "has no chat template: asked through that of" in captured.err
    assert "base> Hello, my friend.\ntuned> Hello, my friend.\n" in captured.out
    small = tmp_path / "small"
    shutil.copytree(tiny_model_dir("llama", vocab_size=500), small)
    (small / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit, match="only 500 embeddings for the 592 tokens"):
        ask(taught, "--prompt", "x", "--base_model", str(small))


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


def test_prompts_from_files(tmp_path, monkeypatch):
    text = tmp_path / "prompts.txt"
    text.write_text("\ufeff첫 번째\r\n\n two \n", encoding="utf-8")
    rows = tmp_path / "prompts.jsonl"
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
    inside = "a\u2028line"
    rows.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ({"prompt": inside}, {"messages": chat})))
    user, system = (lambda t: {"role": "user", "content": t}), {"role": "system", "content": "S"}

    def read(*arguments) -> list[list[dict]]:
        return [chat.messages for chat in generate.read_chats(*arguments)]

    assert read(["x"], str(text), None) == [[user("x")], [user("첫 번째")], [user("two")]]
    assert read([], str(rows), "S") == [[system, user(inside)], chat]
    monkeypatch.setattr(sys, "stdin", io.StringIO(" from\nstdin \n"))
    assert read(["-"], None, "S") == [[system, user("from\nstdin")]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"p.jsonl:2: expected a JSON object"),
        ("p.jsonl", b'{"question": "a"}', r'p.jsonl:1: expected "prompt"'),
        ("p.jsonl", b'["a"]', r"p.jsonl:1: expected an object with prompt or messages, found list"),
        ("p.jsonl", b'{"messages": [{"role": "wizard", "content": "a"}]}', r"p.jsonl:1, message 0: expected a role"),
        ("p.jsonl", b'{"messages": [{"role": "user", "content": "a"}], "tools": "{"}', r"p.jsonl:1: expected JSON"),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}', r"ends with the user's turn"),
        ("p.jsonl", b'{"prompt": " "}', r"an empty user message"),
        ("p.txt", b"\n \n", r"expected at least one prompt, found none"),
        ("p.txt", b"\xb0\xa1\xb3\xaa", r"expected a UTF-8 text file"),
    ],
)
def test_prompt_files_that_cannot_be_used_are_refused_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        generate.read_chats([], str(tmp_path / name), None)


def test_what_goes_wrong_is_one_line_and_keeps_an_earlier_output(taught, tmp_path):
    output = tmp_path / "answers.jsonl"
    output.write_text("earlier")
    long = "🍎" * 300
    with pytest.raises(SystemExit, match=r"the prompt has .* tokens, the context 512"):
        ask(taught, "--prompt", "Say hello.", "--prompt", long, "--output", str(output))
    assert output.read_text() == "earlier"
    with pytest.raises(SystemExit, match=r" is a run or a checkpoint, not an export"):
        ask(taught.parent / "run", "--prompt", "x")
    with pytest.raises(SystemExit, match="cannot be written"):
        ask(taught, "--prompt", "x", "--output", str(tmp_path / "absent" / "o.jsonl"))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--repeat", "0"],
        ["--do_sample", "maybe"],
        ["--max_new_tokens", "-1"],
        ["--max_tokens", "5"],
        ["--temperature", "0"],
        ["--temperature", "nan"],
        ["--top_p", "1.5"],  # transformers would ignore it
        ["--top_p", "0"],
        ["--top_k", "-1"],
        ["--repetition_penalty", "0"],
    ],
    ids=" ".join,
)
def test_values_that_mean_nothing_are_refused_at_once(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        generate.main(["--model", "unread", "--prompt", "x", "--do_sample", *wrong])
    assert error.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_nothing_to_ask_is_refused(capsys):
    with pytest.raises(SystemExit):
        generate.main(["--model", "unread"])
    assert "nothing to ask" in capsys.readouterr().err


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


@pytest.mark.parametrize("words", [["--prompt", "x"], ["--repeat", "2"], ["--base_model", "x"]])
def test_a_conversation_has_one_model_and_no_prompts(words, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--model", "x", "--chat", *words])
    assert "--chat asks one model" in capsys.readouterr().err
