"""The page that preflight prints when the machine is named: memory, what fits, disk and hours."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from transformers import Qwen3Config

from tests.benchmarks.gpu_inputs import SHAPES
from tests.support.preflight_files import write_model, write_shards
from train.memory.changes import cheapest, suggestion
from train.memory.estimate import GIB
from train.memory.fit import Fit, with_rows
from train.memory.setting import Setting, Sharding
from train.memory.skeleton import build
from train.preflight import main

SHAPE = {**SHAPES["tiny"], "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 768, "head_dim": 64}
STEP = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
# What a run of `gpu_flags` keeps in its run.json.
MEASURED = {"device": "NVIDIA H200", "tokens_per_second_per_gpu": 1.0, "sharding": "one process", "processes": 1}
MEASURED["seq_len"] = 8192


@pytest.fixture
def gpu_flags(tmp_path):
    """A run for a GPU, of a model of 4 layers."""
    model = write_model(tmp_path / "model")
    Qwen3Config(**SHAPE, pad_token_id=None).save_pretrained(model)
    shards = write_shards(tmp_path / "shards", seq_len=8192, rows=100)
    flags = ["--data", str(shards), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run")]
    return [*flags, "--report_to", "none", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]


@pytest.fixture(scope="module")
def skeleton():
    return build(Qwen3Config(**SHAPE, pad_token_id=None))


def setting(**changes) -> Setting:
    values = {"rows": 4, "seq_len": 4096, "accumulation": 3, "sharding": Sharding(kind="ddp", processes=8)}
    return Setting(**{**values, **changes})


def test_nothing_of_it_without_a_flag_about_the_machine(gpu_flags, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "train.memory.preflight_page", None)
    assert main(gpu_flags) == 0
    assert "memory " not in capsys.readouterr().out


def test_the_parts_add_up(gpu_flags, capsys):
    flags = ["--gpu_memory_gib", "10", "--nodes", "2", "--gpus_per_node", "4", "--gpu_name", "NVIDIA H100"]
    launch = ["--accelerate_config", "configs/accelerate/zero3_multinode.yaml", "--save_gib_per_second", "0.5"]
    assert main([*gpu_flags, *flags, *launch, "--suggest"]) == 0
    out = capsys.readouterr().out
    assert "64 rows a step = 2 x 4 accumulated x 8 processes" in out
    assert "of one GPU, ZeRO-3, at its fullest" in out
    sizes = {name.strip(): float(size) for name, size in re.findall(r"^ {13}(\D+?) +([\d.]+) GiB", out, re.M)}
    assert sizes["together"] == pytest.approx(sum(sizes.values()) - sizes["together"], abs=0.03)
    for line in ("fits         yes", "checkpoint   ", "s to write at 0.5 GiB/s", "from an MFU of 0.25 of NVIDIA H100"):
        assert line in out
    for line in ("suggestion   ZeRO-1", "gradient_checkpointing: false", "configs/accelerate/zero1.yaml"):
        assert line in out


def test_hours_from_a_measured_throughput(gpu_flags, capsys):
    assert main([*gpu_flags, "--tokens_per_second", "1"]) == 0
    # 39 steps of 8 rows of 16 tokens
    assert "1.4 of training on 1 GPU(s), at 1 tokens/s each, as given" in capsys.readouterr().out


class TestHoursOfAnEarlierRun:
    """39 steps of 8 rows of 16 tokens; at 1 token a second 1.4 hours."""

    @pytest.fixture
    def record(self, tmp_path, gpu_flags):
        """Write run.json of a run next to this one."""
        model = gpu_flags[gpu_flags.index("--model_name_or_path") + 1]

        def write(name: str, **changes) -> str:
            options = {"model_name_or_path": model, **STEP, **changes.pop("options", {})}
            record = {"model_name_or_path": model, "options": options, "world_size": 1, "measured": MEASURED, **changes}
            (tmp_path / name).mkdir()
            (tmp_path / name / "run.json").write_text(json.dumps(record))
            return str(tmp_path / name)

        return write

    def test_named(self, gpu_flags, record, capsys):
        named = record("named", measured={"tokens_per_second_per_gpu": 2.0})
        record("near")
        assert main([*gpu_flags, "--from_run", named]) == 0
        assert f"0.7 of training on 1 GPU(s), at 2 tokens/s each, measured by {named}" in capsys.readouterr().out

    def test_found_next_to_it(self, gpu_flags, record, capsys):
        near = record("near", options={"optim": "adamw_torch_fused", "learning_rate": 1.0})
        assert main([*gpu_flags, "--gpu_name", "H200"]) == 0
        line = f"1.4 of training on 1 GPU(s), at 1 tokens/s each, measured by {near}: "
        out = capsys.readouterr().out
        assert line in out and "NVIDIA H200, 1 process(es)" in out
        assert main([*gpu_flags, "--gpu_name", "H200", "--mfu", "0.3"]) == 0
        assert "calculated from an MFU of 0.3 of H200 (as given)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "changes",
        [
            {"options": {"model_name_or_path": "another"}},
            {"options": {"use_peft": True}},
            {"options": {"attn_implementation": "sdpa"}},
            {"options": {"per_device_train_batch_size": 1}},
            {"options": {"optim": "adamw_8bit"}},
            {"own_options": {"bf16_copies": True}},
            {"own_options": {"keep_logits_gib": 4.0}},
            {"own_options": {"sequence_parallel": 2}},
            {"measured": {**MEASURED, "device": "NVIDIA H20"}},
            {"measured": {**MEASURED, "sharding": "ZeRO-3"}},
            {"measured": {**MEASURED, "processes": 8}},
            {"measured": {**MEASURED, "seq_len": 4096}},
            {"measured": None},
        ],
    )
    def test_a_run_whose_tokens_cost_something_else_is_passed_over(self, changes, gpu_flags, record, capsys):
        record("near", **changes)
        assert main([*gpu_flags, "--gpu_name", "H200"]) == 0
        assert "calculated from an MFU of 0.25 of H200" in capsys.readouterr().out

    def test_a_run_that_is_none(self, gpu_flags, tmp_path, record, capsys):
        assert main([*gpu_flags, "--from_run", str(tmp_path)]) == 2
        assert "--from_run: expected the output_dir of a run, with its run.json" in capsys.readouterr().err
        assert main([*gpu_flags, "--from_run", record("near"), "--mfu", "0.3"]) == 2
        assert "--from_run and --mfu: each gives the hours: keep one" in capsys.readouterr().err

    def test_a_run_without_a_throughput(self, gpu_flags, record, capsys):
        state = {"log_history": [], "global_step": 1}
        folder = record("near", measured=None)
        (Path(folder) / "trainer_state.json").write_text(json.dumps(state))
        assert main([*gpu_flags, "--from_run", folder]) == 0
        assert f"hours        not known, {folder} has logged no throughput" in capsys.readouterr().out
        rates = [{"step": step, "tokens_per_second_per_gpu": rate} for step, rate in enumerate((1, 2, 9))]
        (Path(folder) / "trainer_state.json").write_text(json.dumps({**state, "log_history": rates}))
        assert main([*gpu_flags, "--from_run", folder]) == 0
        assert "at 2 tokens/s each, measured by" in capsys.readouterr().out


def test_what_is_not_counted_is_a_note(gpu_flags, deepspeed_file, launch_file, capsys):
    deepspeed_file(zero_optimization={"stage": 0})
    file = launch_file(use_cpu=False)
    assert main([*gpu_flags, "--gpu_memory_gib", "10", "--accelerate_config", str(file)]) == 0
    assert "memory is not counted: ZeRO stage 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0"], "--nodes: expected a whole number of 1 or more, found '0'"),
        (["--gpu_memory_gib", "-1"], "--gpu_memory_gib: expected a number above 0, found '-1'"),
        (["--gpus_per_node", "4", "--num_processes", "2"], "--nodes and --gpus_per_node make 4"),
    ],
)
def test_wrong_flags(gpu_flags, flags, message, capsys):
    assert main([*gpu_flags, *flags]) == 2
    assert message in capsys.readouterr().err


class TestFit:
    def test_the_largest_micro_batch_is_the_largest(self, skeleton):
        fit = Fit(skeleton, setting(), 8 * GIB)
        rows = fit.largest_rows(fit.setting)
        assert rows > 2
        assert fit.fits(with_rows(fit.setting, rows))
        assert not fit.fits(with_rows(fit.setting, rows + 1))

    def test_none_fits(self, skeleton):
        fit = Fit(skeleton, setting(), 1 * GIB)
        assert fit.largest_rows(fit.setting) == 0
        assert cheapest(fit) is None
        assert suggestion(fit) is None

    def test_smaller_micro_batches_are_the_cheapest_change(self, skeleton):
        fit = Fit(skeleton, setting(), 0)
        one, four = (fit.of(with_rows(fit.setting, rows)).needed for rows in (1, 4))
        fit.limit = (one + four) // 2
        change = cheapest(fit)
        assert change is not None
        rows = change.setting.rows
        assert rows * change.setting.accumulation == 12
        assert list(change.lines(fit.setting)) == [
            f"per_device_train_batch_size: {rows}",
            f"gradient_accumulation_steps: {12 // rows}",
        ]

    def test_checkpointing_is_next(self, skeleton):
        fit = Fit(skeleton, setting(rows=1, accumulation=1), 0)
        fit.limit = fit.estimate.needed - 1
        change = cheapest(fit)
        assert change is not None
        assert list(change.lines(fit.setting)) == ["gradient_checkpointing: true"]


class TestModel:
    @pytest.mark.slow
    def test_page_of_a_model_alone(self, tmp_path, capsys):
        model = write_model(tmp_path / "model")
        Qwen3Config(**SHAPE, pad_token_id=None).save_pretrained(model)
        assert main(["--model", str(model), "--seq_len", "8192", "--gpu_memory_gib", "4"]) == 0
        out = capsys.readouterr().out
        assert "attention    varlen (torch's own flash kernel)" in out
        assert "template     not known: tokenizer" in out  # a file that is none
        assert "lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]" in out
        assert len(re.findall(r"^ {13}\S.* GiB +[\d.]+ GiB +at most", out, re.M)) == 6

    def test_not_next_to_a_run_or_without_its_config(self, gpu_flags, tmp_path, capsys):
        assert main(["--model", str(tmp_path), *gpu_flags]) == 2
        assert "--model: expected no options of a run next to it" in capsys.readouterr().err
        assert main(["--model", str(tmp_path / "nowhere")]) == 2
        assert "nowhere" in capsys.readouterr().err
