"""What is done with a run that has ended: nothing, more steps, or a refusal; never another model without a word."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from tests.support.checkpoint_folders import save
from tests.support.saving_runs import run_here, single_config
from tests.support.training import make_shards
from train.checkpoint import folders
from train.checkpoint.finished import deciding_options, finished_step
from train.config.run_config import load_run_config
from train.run import run_record

REQUIRED = ["--data", "d", "--output_dir", "o", "--model_name_or_path", "m"]


def ended(run_dir, steps: int, *flags: str, **extra) -> None:
    (run_dir / "model.safetensors").write_bytes(b"final")
    options = deciding_options(load_run_config([*REQUIRED, *flags]))
    marker = {"max_steps": steps, "options": options, "rows_per_step": 8, **extra}
    folders.publish(run_dir, step=steps, world_size=1, extra=marker)


@pytest.mark.parametrize(("total", "newer", "done"), [(4, False, 4), (5, False, None), (4, True, None)])
def test_a_run_is_finished_when_its_final_model_is_of_these_steps(total, newer, done, tmp_path):
    save(tmp_path, 4)
    if newer:
        save(tmp_path, 5)
    ended(tmp_path, 4)
    assert finished_step(load_run_config(REQUIRED), tmp_path, 8, total) == done


def test_without_a_final_model_or_where_a_checkpoint_is_named_nothing_is_finished(tmp_path):
    assert finished_step(load_run_config(REQUIRED), tmp_path, 8, 4) is None
    ended(tmp_path, 4)
    assert finished_step(SimpleNamespace(own=SimpleNamespace(resume="x/checkpoint-2")), tmp_path, 8, 4) is None


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ([], ["--learning_rate", "1"], "learning_rate .* then, 1 now"),
        (["--weight_decay", "0.1"], [], "weight_decay 0.1 then, 0.0 now"),
        ([], ["--bf16", "false"], "precision bf16 then, no now"),
        ([], ["--dtype", "bfloat16"], "dtype float32 then, bfloat16 now"),
        ([], ["--neftune_noise_alpha", "5"], "neftune_noise_alpha None then, 5 now"),
        ([], ["--spike_sigma", "8"], "spike_sigma None then, 8 now"),
        (["--optim", "adamw_torch"], ["--optim", "lion_32bit"], "optim adamw_torch then, lion_32bit now"),
    ],
)
def test_options_that_would_make_another_model_are_refused(then, now, words, tmp_path):
    ended(tmp_path, 4, *then)
    assert finished_step(load_run_config([*REQUIRED, *then]), tmp_path, 8, 4) == 4
    with pytest.raises(ValueError, match=f"finished before, with other options: .*{words}"):
        finished_step(load_run_config([*REQUIRED, *now]), tmp_path, 8, 4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--logging_steps", "3"],
        ["--save_total_limit", "1"],
        ["--report_to", "none"],
        ["--bf16", "true"],  # what it is without the option
        ["--gradient_checkpointing", "false"],
        ["--weight_decay", "0.0"],  # the default
        ["--dataloader_num_workers", "2"],
        ["--per_device_train_batch_size", "2"],  # the rows of a step decide
        ["--model_name_or_path", "elsewhere"],  # its content decides
    ],
    ids=" ".join,
)
def test_options_that_change_no_weight_leave_a_run_finished(flags, tmp_path):
    ended(tmp_path, 4)
    required = [word for word in REQUIRED if "--model_name_or_path" not in flags or word not in ("m", flags[0])]
    assert finished_step(load_run_config([*required, *flags]), tmp_path, 8, 4) == 4


def test_other_rows_fewer_steps_or_nothing_to_go_on_from_are_refused(tmp_path):
    ended(tmp_path, 4)
    config = load_run_config(REQUIRED)
    for rows, total, words in (
        (4, 4, "rows of a step 8 then, 4 now"),
        (8, 2, "finished before, after 4 steps; 2 are asked for"),
        (8, 6, "holds no checkpoint to go on from: the 6 steps asked for would begin again"),
    ):
        with pytest.raises(ValueError, match=words):
            finished_step(config, tmp_path, rows, total)


# Whole runs.


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """A run config of two steps of LoRA that has ended once, and the copy of the model that it began from."""
    folder = tmp_path_factory.mktemp("finished")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"a": [1] * 12})
    base = folder / "base"
    shutil.copytree(tiny_model_dir("llama"), base)
    options = {"data": str(shards), "model_name_or_path": str(base), "output_dir": str(folder / "run")}
    options |= {"use_peft": True, "lora_target_modules": ["q_proj"], "max_steps": 2}
    config = single_config(folder / "run.yaml", **options, save_strategy="steps", save_steps=1)
    assert run_here(config) == 0
    return config, base


def test_run_json_and_markers_hold_what_the_run_began_from(lora_run):
    config, _ = lora_run
    record = json.loads((config.parent / "run" / "run.json").read_text())
    assert record["base_model"].keys() == {"config", "weights"}
    for folder in (config.parent / "run", config.parent / "run" / "checkpoint-1"):
        assert folders.read(folder).extra["base_model"] == record["base_model"]


def test_another_base_model_is_found_before_the_run_is_called_finished(lora_run, tmp_path, capsys):
    config, base = lora_run
    shutil.copytree(base, tmp_path / "moved")
    assert run_here(config, "--model_name_or_path", str(tmp_path / "moved")) == 0
    said = capsys.readouterr()
    assert "finished before" in said.out and "WARNING" not in said.out + said.err
    before = (config.parent / "run" / "run.json").read_text()
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    assert run_here(config, "--model_name_or_path", str(tmp_path / "moved")) == 2
    error = capsys.readouterr().err
    assert "holds adapters of the model that was at" in error and "other weights" in error
    assert (config.parent / "run" / "run.json").read_text() == before


def test_a_finished_run_with_another_learning_rate_is_refused(lora_run, capsys):
    config, _ = lora_run
    before = (config.parent / "run" / "run.json").read_text()
    assert run_here(config, "--learning_rate", "1e-5") == 2
    assert "with other options: learning_rate 0.001 then, 1e-05 now" in capsys.readouterr().err
    assert (config.parent / "run" / "run.json").read_text() == before


def test_a_base_model_that_is_known_only_once_it_is_loaded_is_recorded_and_compared(lora_run, monkeypatch, capsys):
    """Such as one of the hub that is not in the cache when the run starts."""
    config, _ = lora_run
    run_dir = config.parent / "run"
    found = json.loads((run_dir / "run.json").read_text())["base_model"]
    answers = iter([None, found, None, {**found, "weights": "0" * 32}])  # before and after it is loaded, twice
    monkeypatch.setattr(run_record, "model_digests", lambda model, revision=None: next(answers))
    assert run_here(config, "--max_steps", "3") == 0
    assert folders.read(run_dir).extra["base_model"] == found
    assert json.loads((run_dir / "run.json").read_text())["base_model"] == found
    assert run_here(config, "--max_steps", "4") == 2
    assert "other weights" in capsys.readouterr().err and next(answers, None) is None
