"""The space that a run needs, compared with what is free and with what a real run takes."""

from __future__ import annotations

import json
import shutil
import struct
from types import SimpleNamespace

import pytest

from tests.support.preflight_runs import problems
from train.checks import disk_space
from train.checks.disk_space import Space, count_weights, needed_space
from train.config.run_config import load_run_config
from train.preflight import main


def write_weights(file, *shapes, dtype="F32"):
    """A safetensors file with a header and no numbers."""
    header = {f"w{i}": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for i, shape in enumerate(shapes)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    def load(*flags):
        names = ["--data", "shards", "--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(tmp_path)]
        return load_run_config([*names, *flags])

    return load


def test_numbers_are_counted_from_headers(tmp_path, config):
    assert count_weights(config()) is None
    write_weights(tmp_path / "model.safetensors", [3, 4], [5])
    assert count_weights(config()) == 17
    write_weights(tmp_path / "model.safetensors", [3, 4], dtype="U8")  # quantised: no number of weights
    assert count_weights(config()) == 0
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert count_weights(config()) is None
    (tmp_path / "model.safetensors").unlink()  # transformers would load it, and not those of an index
    for name in ("a", "b"):
        write_weights(tmp_path / f"{name}.safetensors", [10])
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert count_weights(config()) == 20
    (tmp_path / "b.safetensors").unlink()
    assert count_weights(config()) is None


@pytest.mark.parametrize(
    ("flags", "written", "space"),
    [
        ((), 5, Space(checkpoint=1200, number=5, final=400)),
        (("--save_total_limit", "2"), 5, Space(checkpoint=1200, number=3, final=400)),
        (("--save_total_limit", "1", "--load_best_model_at_end"), 5, Space(checkpoint=1200, number=3, final=400)),
        (("--save_total_limit", "9"), 5, Space(checkpoint=1200, number=5, final=400)),
        (("--optim", "paged_adamw_8bit"), 1, Space(checkpoint=600, number=1, final=400)),
        (("--dtype", "bfloat16"), 0, Space(checkpoint=1000, number=0, final=200)),
        (("--use_peft",), 5, None),
    ],
)
def test_what_a_run_needs(flags, written, space, tmp_path, config):
    write_weights(tmp_path / "model.safetensors", [10, 10])
    assert needed_space(config(*flags), SimpleNamespace(num_checkpoints=written)) == space


def test_too_little_space_is_refused_with_what_would_fit(flags, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    gib = 2**30
    write_weights(model / "model.safetensors", [gib])
    run_flags = [*flags, "--save_steps", "1", "--save_strategy", "steps"]  # 9 checkpoints of 12 GiB, the model 4 GiB
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50 * gib))
    said = problems(run_flags)
    assert "has 50.0 GiB free, the run needs at least" in said and "make space, or write save_total_limit: 2" in said
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=20 * gib))
    assert "make space, or choose another output_dir" in problems(run_flags)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000 * gib))
    assert main(run_flags) == 0
    assert "disk         at least" in capsys.readouterr().out


def test_a_resumed_runs_own_checkpoints_count_as_free(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-2/sub").mkdir(parents=True)
    (tmp_path / "checkpoint-2/sub/x").write_bytes(bytes(7))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    assert disk_space.free_bytes(tmp_path) + disk_space.own_bytes(tmp_path) == 107
    absent = tmp_path / "not/yet/there"
    assert disk_space.free_bytes(absent) + disk_space.own_bytes(absent) == 100
    config = SimpleNamespace(sft={"output_dir": str(tmp_path)})
    needed = [Space(checkpoint=number, number=1, final=0) for number in (107, 108)]
    assert [len(list(disk_space.check_space(config, space))) for space in needed] == [0, 1]


def test_space_of_a_tiny_model_is_not_zero():
    said = disk_space.describe(Space(checkpoint=3 * 2**20, number=2, final=2**30))
    assert said == "1.0 GiB (2 checkpoint(s) of 3.0 MiB at once, the final model 1.0 GiB)"
