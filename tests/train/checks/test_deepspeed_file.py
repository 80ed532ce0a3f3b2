"""train.checks.deepspeed_file: each disagreement with the launch file and the run config is found."""

from __future__ import annotations

import pytest

from tests.support.preflight_runs import problems
from train.config.run_config import load_run_config
from train.preflight import examine


class TestDeepSpeedFile:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"zero_optimization": {"stage": "auto"}}, "expected zero_optimization.stage 0, 1, 2 or 3, found 'auto'"),
            ({"zero_optimization": None}, "expected zero_optimization.stage 0, 1, 2 or 3, found None"),
            ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, in the run config 8"),
            ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, in the run config 1"),
            ({"train_batch_size": 8}, "train_batch_size is 8, in the run config 16"),
            ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, in the run config 1.0 (max_grad_norm)"),
            ({"gradient_clipping": None}, "gradient_clipping is missing: DeepSpeed takes its own default"),
            ({"gradient_accumulation_steps": None}, "gradient_accumulation_steps is missing"),
            ({"bf16": {"enabled": True}}, "bf16.enabled is True, in the run config bf16 is False"),
            ({"fp16": {"enabled": True}}, "fp16.enabled is True, in the run config fp16 is False"),
            ({"optimizer": {"type": "AdamW"}}, "section 'optimizer' would silently replace the run config's optim"),
            (
                {"scheduler": {"type": "WarmupLR"}},
                "section 'scheduler' would silently replace the run config's lr_scheduler_type",
            ),
        ],
    )
    def test_found(self, flags, deepspeed_file, launch_file, changes, words):
        deepspeed_file(**changes)
        assert words in problems(flags, launch=launch_file())

    def test_numbers_that_agree_pass(self, flags, deepspeed_file, launch_file):
        deepspeed_file(
            train_batch_size=16, train_micro_batch_size_per_gpu=8, gradient_clipping=1, bf16={"enabled": False}
        )
        assert problems(flags, launch=launch_file()) == ""

    def test_zero3_init_flag(self, flags, deepspeed_file, launch_file):
        deepspeed_file(zero_optimization={"stage": 3})
        found = problems(flags, launch=launch_file(deepspeed={"zero3_init_flag": False}))
        assert "zero3_init_flag is False, but" in found
        assert problems(flags, launch=launch_file(deepspeed={"zero3_init_flag": True})) == ""

    def test_offload_would_replace_the_optimizer(self, flags, deepspeed_file, launch_file):
        offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
        deepspeed_file(zero_optimization=offload)
        words = "offload_optimizer cpu would silently replace paged_adamw_8bit"
        assert words in problems(flags, "--optim=paged_adamw_8bit", launch=launch_file())
        assert "replace sgd" in problems(flags, "--optim=sgd", launch=launch_file())
        assert problems(flags, "--optim=adamw_torch", launch=launch_file()) == ""
        deepspeed_file(zero_optimization=offload, zero_force_ds_cpu_optimizer=False)
        assert problems(flags, "--optim=paged_adamw_8bit", launch=launch_file()) == ""

    @pytest.mark.parametrize("optim", ["adafactor", "stable_adamw"])
    def test_optimizers_that_need_whole_weights(self, flags, optim, launch_file, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        assert f"on which {optim} would silently make other updates" in problems(
            flags, "--optim", optim, launch=launch_file()
        )
        assert problems(flags, "--optim", optim) == ""

    def test_a_key_twice(self, flags, deepspeed_file, launch_file):
        deepspeed_file().write_text('{"gradient_clipping": 1, "gradient_clipping": 2}')
        assert "key 'gradient_clipping' is given twice" in problems(flags, launch=launch_file())

    def test_not_a_mapping(self, flags, deepspeed_file, launch_file):
        deepspeed_file().write_text("[1]")
        assert "deepspeed.json: expected a mapping, found list" in problems(flags, launch=launch_file())

    def test_no_gathered_weights_is_a_note(self, flags, deepspeed_file, launch_file):
        deepspeed_file(zero_optimization={"stage": 3})
        report = examine(load_run_config(flags), accelerate_config=launch_file(), world_size=None)
        assert not report.problems
        assert any("no weights file is written" in note for note in report.notes)
