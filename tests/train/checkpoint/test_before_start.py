"""Preflight looks into output_dir: what training would refuse to go on with, and where it would go on."""

from __future__ import annotations

import json

import pytest

from data_prep.shards import manifest_sha256
from tests.support.checkpoint_folders import save
from tests.support.preflight_files import write_model, write_shards
from tests.support.preflight_runs import CPU
from train.checkpoint import folders
from train.checkpoint.finished import deciding_options
from train.config.run_config import load_run_config
from train.preflight import main
from train.run import run_record


@pytest.fixture
def flags(tmp_path):
    """The flags of a run that was stopped after step 2 of 4."""
    shards, run_dir = write_shards(tmp_path / "shards"), tmp_path / "run"
    flags = ["--data", str(shards), "--model_name_or_path", str(write_model(tmp_path / "model")), *CPU]
    flags += ["--output_dir", str(run_dir), "--max_steps", "4"]
    run_dir.mkdir()
    run_record.write_record(run_dir, run_record.make_record(run_dir, load_run_config(flags), 1))
    folders.publish(save(run_dir, 2, complete=False), step=2, world_size=1, extra=marker(flags))
    return [*flags, "--num_processes", "1"]


def marker(flags: list[str]) -> dict:
    config = load_run_config(flags)
    same = {"manifest_sha256": manifest_sha256(config.own.data), "data_seed": 42, "row_order": "random"}
    options = {"max_steps": 4, "rows_per_step": 8, "options": deciding_options(config)}
    return {**same, **options, "adapters": {}, "quantisation": {}, "expert_parallel": False}


def found(flags: list[str], capsys) -> str:
    """What the command says of output_dir."""
    main(flags)
    said = capsys.readouterr()
    return "\n".join(line for line in (said.out + said.err).splitlines() if "output_dir" in line)


def test_where_a_start_goes_on(flags, tmp_path, capsys):
    assert found(flags, capsys) == f"output_dir   goes on from checkpoint-2 of {tmp_path / 'run'}"
    more = [*flags[:-1], "2"]
    assert found([*more, "--per_device_train_batch_size", "2"], capsys).endswith(
        "so that a step takes 8 rows as before"
    )
    (tmp_path / "run/run.json").unlink()
    assert found(flags, capsys) == ""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--per_device_train_batch_size", "3"], "a step took 8 rows, here it would take 1 process(es) x 3"),
        (["--data_seed", "7"], "was written with data_seed 42, here it is 7"),
        (["--resume", "never"], "resume is 'never', but"),
    ],
)
def test_what_training_would_refuse(flags, more, words, capsys):
    assert words in found([*flags, *more], capsys)


def test_other_shards(flags, tmp_path, capsys):
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "notes": ["new"]}))
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert "holds a run on other shards" in said and f"`packhaul diff {manifest.parent} {manifest.parent}`" in said


def test_a_finished_run(flags, tmp_path, capsys):
    (tmp_path / "run/model.safetensors").write_bytes(b"final")
    folders.publish(tmp_path / "run", step=4, world_size=1, extra=marker(flags[:-2]))
    assert found(flags, capsys).startswith("output_dir   finished before, after 4 steps: a start trains nothing")
    assert "with other options: learning_rate 2e-05 then, 1 now" in found([*flags, "--learning_rate", "1"], capsys)
