"""`packhaul schema`: the shipped schemas are current, take every shipped file, and refuse what the readers refuse."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from data_prep.recipe import Recipe, load_recipe
from data_prep.strict_files import read_yaml
from packhaul import schema
from tests.conftest import ROOT
from tests.support.json_schema import problems
from train.config.own_options import known_options
from train.config.refused_options import REFUSALS
from train.config.run_config import load_run_config
from train.config.run_schema import LIBRARIES

FOLDER = ROOT / "configs" / "schema"
FILES = {
    **dict.fromkeys(sorted((ROOT / "configs" / "data").glob("*.yaml")), "recipe"),
    **dict.fromkeys(sorted((ROOT / "configs" / "train").glob("*.yaml")), "run"),
}
RUN = {"data": "x", "output_dir": "x", "model_name_or_path": "x"}
RECIPE = {"tokenizer": "x", "sources": [{"name": "x", "path": "x"}]}


def shipped(kind: str) -> dict:
    return json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))


def found(value: dict, kind: str) -> list[str]:
    return list(problems(value, shipped(kind), shipped(kind)))


def pinned(name: str) -> str:
    (line,) = re.findall(rf"^{name}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return line


@pytest.mark.parametrize("kind", schema.KINDS)
def test_the_shipped_schema_is_current(kind):
    if kind == "run" and any(version(name) != pinned(name) for name in LIBRARIES):
        pytest.skip("needs the pinned trl and transformers, whose options the schema holds")
    text = (FOLDER / f"{kind}.json").read_text(encoding="utf-8")
    assert schema.text_of(kind) == text, f"write it again: packhaul schema {kind} > configs/schema/{kind}.json"


def test_the_command_prints_it(capsys):
    assert schema.main(["recipe"]) == 0
    assert json.loads(capsys.readouterr().out) == shipped("recipe")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_names_its_schema_and_fits_it(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = path.parent / first.partition("=")[2]
    assert named.resolve() == FOLDER / f"{FILES[path]}.json"
    assert found(read_yaml(path)[0], FILES[path]) == []


WRONG = [
    ("recipe", {"seq_length": 4096}),
    ("recipe", {"seq_len": "long"}),
    ("recipe", {"seq_len": 1}),
    ("recipe", {"too_long": "cut"}),
    ("recipe", {"sources": []}),
    ("recipe", {"sources": [{"name": "x", "path": "x", "wieght": 1}]}),
    ("recipe", {"sources": [{"name": "x", "path": "x", "form": "chat"}]}),
    ("recipe", {"sources": [{"name": "x y", "path": "x"}]}),
    ("recipe", {"near_duplicates": {"threshold": 0.1}}),
    ("recipe", {"group_by": {"kolumn": "x"}}),
    ("run", {"learning_rat": 1}),
    ("run", {"learning_rate": "fast"}),
    ("run", {"learning_rate": -1.0}),
    ("run", {"max_steps": 0}),
    ("run", {"bf16": 3}),
    ("run", {"packing": True}),
    ("run", {"save_strategy": "sometimes"}),
    ("run", {"on_bad_step": "panic"}),
    ("run", {"hang_seconds": {"lunch": 3}}),
    ("run", {"lora_target_modules": [1]}),
]
RIGHT = [
    ("recipe", {"eval_fraction": 0, "group_by": {"column": "page"}, "pii": ["email"]}),
    ("recipe", {"sources": [{"name": "x", "path": ["a", "b"], "take": 10, "repeat": 2, "roles": {"bot": "user"}}]}),
    ("run", {"max_steps": -1, "save_strategy": False, "eval_strategy": "no", "bf16": None, "warmup_steps": 0.1}),
    ("run", {"use_peft": True, "lora_target_modules": "q_proj", "hang_seconds": {"step": 30}, "packing": False}),
    ("run", {"report_to": ["wandb"], "early_stopping_patience": None}),
]


def reads(tmp_path: Path, kind: str, value: dict) -> bool:
    """Whether the reader itself takes it."""
    path = tmp_path / "file.yaml"
    path.write_text(json.dumps(value))
    try:
        if kind == "recipe":
            load_recipe(path)
        else:
            load_run_config(["--config", str(path)])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("kind", "change"), WRONG, ids=str)
def test_what_a_reader_refuses_the_schema_refuses(kind, change, tmp_path):
    whole = {**(RECIPE if kind == "recipe" else RUN), **change}
    assert not reads(tmp_path, kind, whole)
    assert found(whole, kind)


@pytest.mark.parametrize(("kind", "change"), RIGHT, ids=str)
def test_what_a_reader_takes_the_schema_takes(kind, change, tmp_path):
    whole = {**(RECIPE if kind == "recipe" else RUN), **change}
    assert reads(tmp_path, kind, whole)
    assert found(whole, kind) == []


def test_every_key_has_a_description():
    recipe = shipped("recipe")
    parts = {"Recipe": recipe, "run": shipped("run"), **recipe["$defs"]}
    for name, part in parts.items():
        assert [key for key, value in part["properties"].items() if not value.get("description")] == [], name


def test_defaults_are_valid_and_every_option_is_there():
    assert shipped("recipe")["properties"].keys() == Recipe.model_fields.keys()
    run = shipped("run")
    assert run["properties"].keys() == known_options().keys()
    for name, part in run["properties"].items():
        assert name in REFUSALS or "default" not in part or not [*problems(part["default"], part, run)], name
