"""Messages that are left out are left out, others are not, and each is still said by the installed libraries."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import warnings
from pathlib import Path

import pytest

from tests.support.saving_runs import run_here, single_config
from tests.support.training import make_shards
from train.config.library_options import package_folder
from train.run import quiet

OURS = ("sft: ", "{'", "encoder: ")


def texts(file: Path) -> list[str]:
    """The texts in a source file, with the fixed parts of those that hold values."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
    return found


@pytest.mark.parametrize(
    "message", [*quiet.LOGGED, *quiet.WARNED, quiet.PRINTED, quiet.OFFLINE], ids=lambda message: message.words
)
def test_the_libraries_still_say_it(message):
    package, _, rest = message.file.partition("/")
    words = message.words.replace("['lm_head.weight']", "{}")
    assert any(words in text for text in texts(package_folder(package) / rest))


@pytest.mark.parametrize("message", quiet.LOGGED, ids=lambda message: message.logger)
def test_a_logger_says_all_but_that(message):
    logger = logging.Logger(message.logger)
    logger.addFilter(message)
    logger.addFilter(message)
    assert len(logger.filters) == 1
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    logger.warning(f"[RANK 0] {message.words} and more")
    logger.warning("something else: %s", 1)
    assert said == ["something else: 1"]


def test_warnings_but_that_one():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet.set_up()
        warnings.warn(f"{quiet.WARNED[0].words} Use", FutureWarning, stacklevel=1)
        warnings.warn("`is_new` is deprecated", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["`is_new` is deprecated"]


def test_a_print_of_deepspeed_but_that_one(capsys):
    module = importlib.import_module("deepspeed.comm.torch")
    quiet.silence_deepspeed()
    try:
        module.print("DeepSpeed deepspeed.ops.comm.deepspeed_shm_comm_op built successfully")
        module.print("something else", flush=True)
    finally:
        del module.print
    assert capsys.readouterr().out == "something else\n"


def test_a_print_of_transformers_but_that_one(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(quiet.importlib, "import_module", lambda name: print(f"{quiet.OFFLINE.words}\nsomething else"))
    quiet.import_integrations()
    assert capsys.readouterr().out == "something else\n"


@pytest.mark.parametrize(("terminal", "rank", "shown"), [(True, "0", True), (True, "1", False), (False, "0", False)])
def test_bars_are_for_the_first_rank_on_a_terminal(terminal, rank, shown, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    quiet.set_up()
    assert quiet.shows_bars() is shown and ("HF_HUB_DISABLE_PROGRESS_BARS" in os.environ) is not shown


def test_a_run_prints_our_lines_and_metrics(tiny_model_dir, tiny_tokenizer, tmp_path, capfd):
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1] * 20}, eval_fraction=0.2)
    options = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("qwen3")), "max_steps": 2}
    options |= {
        "output_dir": str(tmp_path / "run"),
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    options |= {"use_peft": True, "lora_target_modules": ["q_proj"], "gradient_checkpointing": True}
    capfd.readouterr()
    assert run_here(single_config(tmp_path / "run.yaml", **options)) == 0
    said = capfd.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith(OURS)] == []
