"""Every command line in the Markdown documents is one that its command takes: files, flags and their values."""

from __future__ import annotations

import argparse
import dataclasses
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from packhaul.command import COMMANDS
from packhaul.training import launch_file, split_flags
from tests.support.markdown import DOCUMENTS, NAMES, ROOT, all_code, at, module_file, none, read, run_config, text_of
from train.memory.asked import Asked

EVERY_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)


@dataclass(frozen=True)
class Command:
    """A documented command line."""

    where: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


PASSES_ON = ("train.evaluate",)  # flags that it does not know go to another program
STARTS = ("packhaul", "python", "accelerate", "slurm/submit.sh", "make", "pip")


def commands(path: Path) -> Iterator[Command]:
    """Commands in fenced blocks and in backticks, without variables before them. A span without a flag only mentions a
    module, which `test_modules_exist` looks for."""
    lines, blocks = read(path)
    spans = [(line.number, span) for line in lines for span in line.spans()]
    texts = [(number, span) for number, span in spans if re.match(r"(make|pip|packhaul) |.* --", span)]
    for block in blocks:
        if block.language == "bash":
            joined = block.text.replace("\\\n", " ")
            texts += [(block.number, text) for text in joined.split("\n")]
    for number, text in texts:
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # backticks around an apostrophe are no command
            continue
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if len(words) > 1 and words[0] in STARTS:
            yield Command(at(path, number), words)


ALL_COMMANDS = list(dict.fromkeys(str(command) for path in DOCUMENTS for command in commands(path)))
BY_TEXT = {str(command): command for path in DOCUMENTS for command in commands(path)}


def test_there_are_commands() -> None:
    starts = {command.words[0] for command in BY_TEXT.values()}
    assert starts >= {"packhaul", "python", "accelerate", "slurm/submit.sh", "make"}


@pytest.mark.parametrize("text", ALL_COMMANDS)
def test_commands_parse(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = BY_TEXT[text].words
    problem = {
        "packhaul": packhaul_problem,
        "python": python_problem,
        "accelerate": accelerate_problem,
        "slurm/submit.sh": submit_problem,
        "make": make_problem,
        "pip": pip_problem,
    }[words[0]](words[1:])
    assert problem is None, f"{text}: {problem} {capsys.readouterr().err}"


def make_problem(words: list[str]) -> str | None:
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    return next((f"there is no target {word}" for word in words if word not in targets), None)


def pip_problem(words: list[str]) -> str | None:
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    named = [name for word in words if word.startswith(".[") for name in word[2:-1].split(",")]
    return next((f"there is no extra {name}" for name in named if name not in extras), None)


def python_problem(words: list[str]) -> str | None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return None
    if words[0] != "-m":
        return f"expected -m MODULE, found {words[0]}"
    return module_problem(words[1], words[2:])


def packhaul_problem(words: list[str]) -> str | None:
    """One of its commands, with the flags of the module it stands for; without a flag it is only mentioned."""
    name, *rest = words
    if name == "COMMAND" or name.startswith("--"):
        return None
    if name not in COMMANDS:
        return f"there is no command {name}"
    if not any(word.startswith("--") for word in rest):
        return None
    if name == "submit":
        return submit_problem(rest)
    if name == "train":
        launch, _, rest = split_flags(rest)
        if launch and launch != "NAME" and not launch_file(launch).is_file():
            return f"there is no launch file {launch}"
    module = COMMANDS[name].module.removesuffix(".__main__").replace("packhaul.training", "train.sft")
    return module_problem(module, rest)


def accelerate_problem(words: list[str]) -> str | None:
    from accelerate.commands.launch import launch_command_parser

    if words[0] != "launch":
        return f"expected launch, found {words[0]}"
    try:
        parsed = launch_command_parser().parse_args(words[1:])
    except SystemExit:
        return "accelerate launch refuses the flags"
    if not (ROOT / str(parsed.config_file)).is_file():
        return f"there is no launch file {parsed.config_file}"
    return module_problem(parsed.training_script, parsed.training_script_args) if parsed.module else "expected -m"


def submit_problem(words: list[str]) -> str | None:
    """What slurm/submit.sh would refuse: stages joined by `then`, each with the flags of its module."""
    modules = {"prepare": "data_prep.prepare", "train": "train.sft", "export": "train.export"}
    modules["evaluate"] = "train.evaluate"
    if words[0] == "--dry-run":
        words = words[1:]
    for part in " ".join(words).split(" then "):
        stage, *flags = part.split()
        if stage not in modules:
            return f"there is no stage {stage}"
        if stage == "prepare":
            flags = _without(_without(flags, "--from"), "--array")
        if problem := module_problem(modules[stage], flags):
            return problem
    return None


def _without(words: list[str], flag: str) -> list[str]:
    if flag not in words:
        return words
    place = words.index(flag)
    return words[:place] + words[place + 2 :]


def module_problem(name: str, words: list[str]) -> str | None:
    """What is wrong with a command of ours. `...` stands for any flags."""
    if not name.startswith(("data_prep.", "train.", "tests.")):
        return None
    if not module_file(name):
        return f"there is no module {name}"
    if "..." in words:
        return None
    return run_problem(name, words) if name in ("train.sft", "train.preflight") else parser_problem(name, words)


def run_problem(name: str, words: list[str]) -> str | None:
    """Flags of a run, with its files: the run config has to be there."""
    of_preflight = ("accelerate_config", "num_processes", "verify_data", *(f.name for f in dataclasses.fields(Asked)))
    own = of_preflight if name == "train.preflight" else ()
    flags = dict(re.findall(r"--([\w-]+)(?:[ =](?!--)(\S+))?", " ".join(words)))
    if "--help" in words:
        return None
    known = run_config().known_options()
    for flag, value in flags.items():
        if flag not in (*own, "config") and flag not in known:
            return f"there is no option --{flag}"
        if flag in ("config", "accelerate_config") and value.startswith("configs/") and not (ROOT / value).is_file():
            return f"there is no file {value}"
    alone = name == "train.preflight" and "model" in flags
    return None if "config" in flags or alone else "--config is missing"


class _Parsed(BaseException):
    """The parser took the flags."""


def parser_problem(name: str, words: list[str]) -> str | None:
    """Run a module as a command until its parser has taken the flags."""
    method = "parse_known_args" if name in PASSES_ON else "parse_args"
    parse = getattr(argparse.ArgumentParser, method)

    def stop(parser: argparse.ArgumentParser, *arguments: Any, **keywords: Any) -> Any:
        parse(parser, *arguments, **keywords)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy's about modules that are imported already
        patch.setattr(argparse.ArgumentParser, method, stop)
        patch.setattr(sys, "argv", [name, *words])
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except _Parsed:
            return None
        except SystemExit as exit_:
            return None if "--help" in words and not exit_.code else f"exit code {exit_.code}:"
    return "it has no parser"


@EVERY_DOCUMENT
def test_flags_exist(path: Path) -> None:
    """`--flag` in backticks, by itself, is a flag of some command of ours, of accelerate's or of SLURM's."""
    code = "\n".join(all_code())
    known = run_config().known_options()
    problems = []
    for line in read(path)[0]:
        for flag in (word for span in line.spans() for word in re.findall(r"(?:^| )--([a-z][\w-]+)", span)):
            if flag not in known and f"--{flag}" not in code:
                problems.append(f"{at(path, line.number)}: --{flag}")
    none(problems)


@pytest.mark.parametrize("path", ["README.md", "README.ko.md", "docs/slurm.md"])
def test_a_chain_trains_the_model_that_its_data_is_prepared_for(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8").replace("\\\n", " ")
    chains = re.findall(r"prepare --recipe (\S+) --output (\S+)\s+then train --config (\S+)", text)
    assert chains
    for recipe, output, config in chains:
        prepared, trained = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in (recipe, config))
        families = [name.partition("-")[0] for name in (prepared["tokenizer"], trained["model_name_or_path"])]
        assert families[0] == families[1], (recipe, config)
        assert output == trained["data"], config
