"""The shipped recipes: each is prepared on generated rows, and its run is checked on a model of the same type.

The memory page in a head comment is that of today, and says that the run fits its hardware.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import prepare
from data_prep.shards import read_manifest, read_rows, shard_files
from data_prep.strict_files import read_yaml
from tests.conftest import ROOT
from tests.support import recipe_pages
from tests.support.recipe_rows import NUM_ROWS, on_generated_rows
from train.preflight import main as preflight

DATA = [path for path in sorted((ROOT / "configs/data").glob("*.yaml")) if path.stem != "quickstart"]
RUNS = [path for path in sorted(recipe_pages.TRAIN.glob("*.yaml")) if path.stem != "quickstart"]
CHEAP = ["example_one_gpu"]  # of one kind of layer each; the others are made by `make recipes`


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the paths in configs are relative to it
    monkeypatch.setenv("PACKHAUL_DATA", "/data")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """By name of a recipe: its shards of generated rows. Made once."""
    made: dict[str, Path] = {}

    def shards_of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            recipe = on_generated_rows(ROOT / f"configs/data/{name}.yaml", folder)
            flags = ["--recipe", str(recipe), "--output", str(folder / "shards"), "--num-workers", "1"]
            assert prepare.main([*flags, "--encoder", "tokenizers"]) == 0
            made[name] = folder / "shards"
        return made[name]

    return shards_of


def commands(path: Path) -> dict[str, list[str]]:
    """The words of the commands in a head comment, by packhaul's name of them; without variables before them."""
    text = path.read_text(encoding="utf-8").replace("\\\n#", " ")
    lines = [shlex.split(line) for line in re.findall(r"^#   ((?:[A-Z_]+=\S+ )*packhaul .*)$", text, re.MULTILINE)]
    words = [line[next(i for i, word in enumerate(line) if word == "packhaul") + 1 :] for line in lines]
    return {line[0] if line[0] != "submit" else line[1]: line[1:] for line in words}


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("path", DATA, ids=name_of)
def test_every_row_of_the_form_is_used(path, prepared):
    manifest = read_manifest(prepared(path.stem))
    for source in manifest["sources"]:
        assert source["rows"] == source["kept"] == NUM_ROWS


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_the_run_passes_preflight_on_a_model_of_its_type(path, prepared, tmp_path, capsys):
    options, _ = read_yaml(path)
    shards = prepared(Path(value(commands(path)["prepare"], "--recipe")).stem)
    model = tiny_model(recipe_pages.shape_file(options["model_name_or_path"]), shards, tmp_path / "model")
    flags = ["--config", str(path), "--data", str(shards), "--model_name_or_path", str(model)]
    flags += ["--accelerate_config", value(commands(path)["preflight"], "--accelerate_config")]
    flags += ["--num_processes", str(processes(path)), "--output_dir", str(tmp_path / "run")]
    assert preflight(flags) == 0, capsys.readouterr().err


def tiny_model(shape: Path, shards: Path, folder: Path) -> Path:
    """A random model of the shape's type, with the shards' tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = json.loads(shape.read_text(encoding="utf-8"))
    text = settings.get("text_config", settings)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8}
    small |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    text |= {name: size for name, size in small.items() if name in text}
    text["vocab_size"] = read_manifest(shards)["tokenizer"]["size"]
    for name in ("rope_parameters", "rope_scaling"):
        text.pop(name, None)
    config = AutoConfig.for_model(**settings)
    shutil.copytree(shards / "tokenizer", folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def processes(path: Path) -> int:
    words = commands(path)["preflight"]
    return int(value(words, "--nodes")) * int(value(words, "--gpus_per_node"))


def test_calls_and_answers_are_trained_and_results_are_not(prepared):
    document = trained_text(prepared("tool_calls"))
    assert '{"name": "weather", "arguments": {"city": "City' in document
    assert "degrees." in document and "You are welcome." in document
    for untrained in ("blue ", "Looks it up.", "How is City", "Thanks!"):
        assert untrained not in document


def test_reasoning_is_trained_and_empty_blocks_are_not(prepared):
    manifest = read_manifest(prepared("reasoning"))
    turns = {source["name"]: source["turns"] for source in manifest["sources"]}
    assert turns["reasoning"]["with_reasoning"] == turns["reasoning"]["trained"]
    assert turns["plain"]["with_reasoning"] == 0
    document = trained_text(prepared("reasoning"))
    assert "and one more.\n</think>" in document
    assert "<think>\n\n</think>" not in document


def trained_text(shards: Path) -> str:
    """All trained tokens of the train split."""
    from transformers import AutoTokenizer

    rows = [row for file in shard_files(shards, read_manifest(shards), "train") for row in read_rows(file)]
    ids = np.concatenate([np.asarray(row["labels"]) for row in rows])
    return str(AutoTokenizer.from_pretrained(shards / "tokenizer").decode(ids[ids >= 0]))


class TestPages:
    @pytest.mark.parametrize("path", RUNS, ids=name_of)
    def test_it_fits_its_hardware(self, path):
        page = "\n".join(recipe_pages.shown(path))
        fits = re.search(r"^fits         yes, ([\d.]+) GiB of ([\d.]+) GiB", page, re.MULTILINE)
        assert fits and "memory is not counted" not in page, page
        assert float(fits[1]) * (1 + self.least_room(page)) < float(fits[2])

    def least_room(self, page: str) -> float:
        """What preflight's notes say that was needed beyond the estimate."""
        found = re.findall(r"^note: .*?(\d+) % more than", page, re.MULTILINE)
        return max((int(share) / 100 for share in found), default=0)

    @pytest.mark.parametrize("path", RUNS, ids=name_of)
    def test_its_commands_belong_together(self, path):
        """The shards of the recipe, with its rows' length; the launch that the page is for."""
        options, _ = read_yaml(path)
        found = commands(path)
        recipe, _ = read_yaml(ROOT / value(found["prepare"], "--recipe"))
        assert value(found["prepare"], "--output") == options["data"]
        assert recipe["seq_len"] == recipe_pages.data_of(path).seq_len
        assert value(found["train"], "--config") == value(found["preflight"], "--config")
        assert value(found["train"], "--config") == f"configs/train/{path.name}"
        launch = value(found["train"], "--launch") if "--launch" in found["train"] else "zero3_multinode"
        assert value(found["preflight"], "--accelerate_config") == f"configs/accelerate/{launch}.yaml"
        assert options.get("expected_world_size", 1) == processes(path)

    @pytest.mark.parametrize("name", CHEAP)
    def test_it_is_that_of_today(self, name):
        path = recipe_pages.TRAIN / f"{name}.yaml"
        assert recipe_pages.shown(path) == recipe_pages.made(path), "out of date: run `make recipes`"

    @pytest.mark.parametrize("path", RUNS, ids=name_of)
    def test_what_it_says_of_the_run_is_that_of_today(self, path):
        """All but memory, which takes seconds to count: batch, steps, adapters, checkpointing, optimizer."""
        options, _ = read_yaml(path)
        page = recipe_pages.shown(path)
        lines = recipe_pages.made(path, memory=False)
        assert page[: len(lines)] == lines, "out of date: run `make recipes`"
        text = "\n".join(page)
        if activations := re.search(r"^ +activations .*", text, re.MULTILINE):
            assert activations[0].endswith(", checkpointing") == options["gradient_checkpointing"]
        assert options["optim"] in text
