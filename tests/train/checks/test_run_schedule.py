"""train.checks.run_schedule: the derived numbers are the trainer's, and what does not fit together is found."""

from __future__ import annotations

import pytest

from tests.support.preflight_files import write_shards
from tests.support.preflight_runs import problems
from train.checks.run_schedule import derive
from train.config.run_config import load_run_config
from train.preflight import examine


class TestSchedule:
    def test_no_eval_split(self, tmp_path, flags):
        shards = write_shards(tmp_path / "no_eval", eval_rows=0)
        flags = [*flags[2:], "--data", str(shards)]
        assert "has no eval split" in problems(flags, "--eval_strategy", "epoch")
        assert problems(flags) == ""

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ([], "true needs evaluations to know the best by"),
            (["--eval_strategy", "epoch"], "expects save_strategy: epoch, as eval_strategy, found steps"),
            (
                ["--eval_strategy=steps", "--eval_steps=40", "--save_steps=100"],
                "a multiple of eval_steps, found 100 and 40",
            ),
            (["--eval_strategy=steps", "--eval_steps=0.1", "--save_steps=100"], "a multiple of eval_steps"),
            (["--eval_strategy=steps", "--eval_steps=0.2", "--save_steps=0.5"], "a multiple of eval_steps"),
            (["--eval_strategy=steps", "--logging_steps=30", "--save_steps=100"], "found 100 and 30"),
        ],
    )
    def test_best_checkpoint(self, flags, more, words):
        assert words in problems(flags, "--load_best_model_at_end", *more)

    @pytest.mark.parametrize(
        "more",
        [
            ["--eval_strategy=steps", "--eval_steps=50", "--save_steps=100"],
            ["--eval_strategy=steps", "--eval_steps=0.1", "--save_steps=0.3"],
            ["--eval_strategy=steps", "--eval_steps=50", "--save_strategy=best"],
            ["--eval_strategy=epoch", "--save_strategy=epoch"],
        ],
    )
    def test_best_checkpoint_that_fits(self, flags, more):
        assert problems(flags, "--load_best_model_at_end", *more) == ""

    def test_the_metric_is_one_that_is_measured(self, flags):
        steps = ["--eval_strategy=epoch", "--save_strategy=epoch", "--load_best_model_at_end"]
        for name in ("loss", "eval_loss", "eval_token_accuracy", "words_loss", "eval_words_loss_change"):
            assert problems(flags, *steps, "--metric_for_best_model", name) == ""
        found = problems(flags, *steps, "--metric_for_best_model", "accuracy")
        assert "metric_for_best_model: expected one of eval_loss, eval_token_accuracy, eval_words_loss, " in found
        found = problems(flags, *steps, "--eval_on_start=false", "--metric_for_best_model", "loss_change")
        assert "found loss_change" in found  # nothing to compare with

    def test_plateau_and_best_need_evaluations(self, flags):
        assert "best needs evaluations" in problems(flags, "--save_strategy", "best")
        assert "needs evaluations" in problems(flags, "--lr_scheduler_type", "reduce_lr_on_plateau")

    def test_derived_numbers(self, flags):
        more = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=3", "--num_train_epochs=1.5"]
        more += [
            "--warmup_steps=0.1",
            "--save_steps=2",
            "--eval_strategy=steps",
            "--eval_steps=3",
            "--save_total_limit=3",
        ]
        train = {"rows": 40, "tokens": 640, "trained_tokens": 320}
        schedule = derive(load_run_config([*flags, *more]), train, processes=2)
        assert schedule.rows_per_step == 12
        assert schedule.tokens_per_step == 192
        assert schedule.trained_tokens_per_step == 96
        assert schedule.steps_per_epoch == 4  # 40 rows, 12 a step
        assert schedule.total_steps == 6
        assert schedule.warmup_steps == 1
        assert schedule.num_checkpoints == 3  # after 2, 4 and 6
        assert schedule.num_evaluations == 3  # that of the base model with them

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--warmup_steps", "15"], "warm-up takes all"),
            (["--gradient_accumulation_steps", "8"], "a step takes 64 rows, the train split has 40"),
            (["--save_strategy", "no"], "no checkpoint is written before the end"),
            (["--torch_compile"], "rows are filled up to 16 tokens"),
            (["--torch_compile_backend", "aot_eager"], "rows are filled up to 16 tokens"),
            (["--pad_to_multiple_of", "256"], "fills up each micro-batch, of at most 128 tokens, to that size"),
        ],
    )
    def test_notes(self, flags, more, words):
        report = examine(load_run_config([*flags, *more]), accelerate_config=None, world_size=1)
        assert any(words in note for note in report.notes)
        sound = examine(load_run_config(flags), accelerate_config=None, world_size=1)
        assert not any(words in note for note in sound.notes)

    @pytest.mark.parametrize(("batch", "accumulation", "epochs"), [(1, 1, 1.0), (3, 2, 2.5), (4, 8, 1.0)])
    def test_steps_are_the_trainers(self, flags, batch, accumulation, epochs, tmp_path):
        """One process; the trainer's own arithmetic on a data loader of the same length."""
        import math

        from transformers import Trainer, TrainingArguments

        more = [f"--per_device_train_batch_size={batch}", f"--gradient_accumulation_steps={accumulation}"]
        train = {"rows": 41, "tokens": 41, "trained_tokens": 41}
        schedule = derive(load_run_config([*flags, *more, f"--num_train_epochs={epochs}"]), train, processes=1)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            use_cpu=True,
        )
        trainer = object.__new__(Trainer)
        trainer.args = args
        trainer.get_total_train_batch_size = lambda args: batch * accumulation
        trainer.get_sp_size = lambda: 1
        trainer.num_examples = lambda loader: 41
        values = trainer.set_initial_training_values(args, [None] * math.ceil(41 / batch))
        assert (schedule.steps_per_epoch, schedule.total_steps) == (values[1], values[6])
