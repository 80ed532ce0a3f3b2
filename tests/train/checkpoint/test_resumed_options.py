"""Going on with a run that has ended, was changed, branched or damaged: what happens is what the user would expect."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.saving_runs import preempt, run_here, single_config
from tests.support.training import history, make_shards
from train.checkpoint import folders, pending_save
from train.checkpoint.saving import Checkpointer
from train.loop.bad_steps import StepGuard
from train.loop.sample_answers import Sampler
from train.loop.trainer import PackedSFTTrainer
from train.run import preemption, watchdog


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """Factory of run configs, of three steps an epoch; `other_data` takes other shards."""
    folder = tmp_path_factory.mktemp("changes")
    answers = {"short": [1] * 30, "long": [5] * 6}
    shards = make_shards(folder / "one", tiny_tokenizer.name_or_path, answers, eval_fraction=0.1)
    other = make_shards(folder / "two", tiny_tokenizer.name_or_path, answers, eval_fraction=0.1, seed=1)

    def make(name: str, other_data: bool = False, **options):
        settings = {
            "data": str(other if other_data else shards),
            "model_name_or_path": str(tiny_model_dir("llama")),
            "output_dir": str(folder / name),
            "max_steps": 4,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "sample_prompts": 0,
            "dataloader_pin_memory": False,
        }
        return single_config(folder / f"{name}.yaml", **{**settings, **options}), folder / name

    return make


def steps_of(run_dir) -> list[int]:
    return [c.step for c in folders.find_checkpoints(run_dir)]


def logged(run_dir, name: str) -> list[float]:
    return [entry[name] for entry in history(run_dir) if "loss" in entry]


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1.5}])
def test_a_finished_run_started_again_trains_nothing(length, make_run, capsys):
    config, run_dir = make_run(f"finished{length['max_steps']}", **length)
    assert run_here(config) == 0
    losses, weights = logged(run_dir, "loss"), (run_dir / "model.safetensors").read_bytes()
    assert run_here(config) == 0
    assert "finished before" in capsys.readouterr().out
    (run_dir / "complete.json").unlink()  # killed before the final model was complete
    (run_dir / "model.safetensors").unlink()
    last = folders.find_checkpoints(run_dir)[-1]
    if last.step == len(losses):
        assert run_here(config) == 0
        assert logged(run_dir, "loss") == losses and (run_dir / "model.safetensors").read_bytes() == weights
        assert run_here(config, "--max_steps", "6", "--learning_rate", "1e-4") == 0
        assert len(logged(run_dir, "loss")) == 6


def test_early_stopping_stays_the_end(make_run):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 20}
    config, run_dir = make_run(
        "early", **options, metric_for_best_model="eval_loss", greater_is_better=True, early_stopping_patience=2
    )
    assert run_here(config) == 0
    stopped = steps_of(run_dir)[-1]
    assert stopped < 20
    (run_dir / "complete.json").unlink()
    assert run_here(config) == 0
    assert steps_of(run_dir)[-1] == stopped == len(logged(run_dir, "loss"))


def test_options_that_change_at_a_resume_hold_from_there_on(make_run, capsys):
    config, run_dir = make_run("changed")
    assert run_here(config) == 0
    capsys.readouterr()
    flags = ("--max_steps", "6", "--learning_rate", "1e-5", "--weight_decay", "0.5", "--save_steps", "5")
    assert run_here(config, *flags) == 0
    printed = capsys.readouterr().out
    for words in ("learning_rate is 1e-05 from step 5 on", "weight_decay is 0.5", "save_steps is 5"):
        assert words in printed
    assert logged(run_dir, "learning_rate") == [1e-3] * 4 + [1e-5] * 2
    assert steps_of(run_dir) == [2, 4, 5, 6]
    groups = json.loads(json.dumps(load_groups(run_dir / "checkpoint-6")))
    assert {g["weight_decay"] for g in groups} == {0.5, 0.0} and {g["initial_lr"] for g in groups} == {1e-5}


def load_groups(folder):
    import torch

    return torch.load(folder / "optimizer.pt", weights_only=True)["param_groups"]


def test_a_named_checkpoint_begins_a_branch_of_its_own(make_run):
    config, run_dir = make_run("branch", max_steps=8)
    assert run_here(config) == 0 and steps_of(run_dir) == [2, 4, 6, 8]
    flags = ("--resume", str(run_dir / "checkpoint-2"), "--save_total_limit", "2", "--save_steps", "1")
    assert run_here(config, *flags, "--max_steps", "5") == 0
    assert steps_of(run_dir) == [4, 5]
    assert sorted(p.name for p in run_dir.glob("aside-*")) == [f"aside-checkpoint-{n}" for n in (4, 6, 8)]
    assert run_here(config, *flags, "--max_steps", "7") == 0  # such as after a requeue
    assert steps_of(run_dir) == [6, 7] and len(logged(run_dir, "loss")) == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"other_data": True}, "manifest_sha256"),
        ({"seed": 99}, "data_seed"),
        ({"use_peft": True}, "adapters"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, words, make_run, capsys):
    config, run_dir = make_run("mine", max_steps=2)
    if not run_dir.exists():
        assert run_here(config) == 0
    other, _ = make_run(f"other-{words}", **change, resume=str(run_dir / "checkpoint-2"))
    assert run_here(other) == 2
    assert f"was written with {words}" in capsys.readouterr().err


def test_all_checkpoints_damaged_is_refused(make_run, capsys):
    config, run_dir = make_run("damaged", max_steps=4, save_total_limit=1)
    assert run_here(config) == 0
    (run_dir / "complete.json").unlink()
    weights = run_dir / "checkpoint-4" / "optimizer.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert run_here(config) == 2
    error = capsys.readouterr().err
    assert "nothing to go on from" in error and "- damaged-checkpoint-4: given up before" in error


def test_a_preemption_is_marked_before_anything_that_takes_time(make_run, at_step, monkeypatch):
    """In the middle of an epoch: one save, no evaluation, no best model loaded."""
    calls = []

    def note(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name in ("evaluation_loop", "_load_best_model"):
        note(PackedSFTTrainer, name)
    note(preemption, "mark")
    note(folders, "publish")
    config, run_dir = make_run(
        "mark",
        max_steps=9,
        save_strategy="epoch",
        eval_strategy="epoch",
        eval_on_start=False,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    at_step(5, preempt)
    assert run_here(config) == 0
    assert calls == ["evaluation_loop", "publish", "publish", "mark"] and steps_of(run_dir) == [3, 5]


def test_a_preemption_saves_whatever_the_metric(make_run, at_step):
    config, run_dir = make_run(
        "best",
        max_steps=9,
        save_strategy="best",
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    at_step(4, preempt)
    assert run_here(config) == 0
    assert steps_of(run_dir)[-1] == 4 and (run_dir / "preempted.json").exists()


def test_a_best_checkpoint_that_was_not_saved_is_not_the_best(make_run, monkeypatch):
    losses = {2: 5.0, 4: 1.0, 6: 7.0}
    evaluate, move = PackedSFTTrainer.evaluation_loop, pending_save.move

    def pretend(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_loss"] = losses.get(self.state.global_step, 9.0)
        return output

    def full(source, target):
        if "checkpoint-4" in str(source):
            raise OSError(28, "No space left on device")
        return move(source, target)

    monkeypatch.setattr(PackedSFTTrainer, "evaluation_loop", pretend)
    monkeypatch.setattr(pending_save, "move", full)
    config, run_dir = make_run(
        "bestfail",
        max_steps=6,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    assert run_here(config) == 0
    state = json.loads((run_dir / "trainer_state.json").read_text())
    assert state["best_global_step"] == 2 and state["best_metric"] == 5.0
    best = (run_dir / "checkpoint-2" / "model.safetensors").read_bytes()
    assert (run_dir / "model.safetensors").read_bytes() == best


def test_a_bad_step_waits_for_the_checkpoint_under_way(make_run, monkeypatch):
    judged, move = [], pending_save.move

    def judge(self, *args):
        judged.append(args)
        return "a test" if len(judged) == 5 else None

    def slow_move(source, target):
        time.sleep(0.05)
        return move(source, target)

    monkeypatch.setattr(StepGuard, "_judge", judge)
    monkeypatch.setattr(pending_save, "move", slow_move)
    config, run_dir = make_run("bad", max_steps=8, save_steps=4)
    assert run_here(config) == 2
    assert steps_of(run_dir) == [4] and not list(run_dir.glob(".saving-*"))


def test_slow_saves_and_answers_are_no_hang(make_run, monkeypatch):
    """Each file and answer is a sign of life: this run takes many times the patience."""
    signs, answer, move = [], Sampler._answer, pending_save.move
    original_progress = watchdog.progress

    def progress():
        signs.append(watchdog._watch._at)
        original_progress()

    def slow(original):
        def call(*args):
            time.sleep(0.05)
            return original(*args)

        return call

    monkeypatch.setattr(watchdog, "progress", progress)
    monkeypatch.setattr(Sampler, "_answer", slow(answer))
    monkeypatch.setattr(pending_save, "move", slow(move))
    config, _ = make_run(
        "slow", max_steps=2, eval_strategy="steps", eval_steps=2, sample_prompts=3, save_in_background=False
    )
    assert run_here(config) == 0
    phases = [at.phase for at in signs if at.step == 2]
    assert phases.count("evaluation") >= 4 and phases.count("save") >= 5  # batches and answers, files


def test_what_cannot_be_written_beside_the_checkpoints_ends_no_training(make_run, monkeypatch, capsys):
    def full(self, step, rows):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Sampler, "_keep", full)
    config, run_dir = make_run("quota", eval_strategy="steps", eval_steps=2, sample_prompts=1)
    assert run_here(config) == 0
    assert "are not kept" in capsys.readouterr().err
    assert not {"samples.jsonl", "README.md"} & folders.read(run_dir).files.keys()


def test_a_failed_write_gives_its_memory_back(make_run, monkeypatch):
    lent = []
    finish = Checkpointer.finish

    def note(self):
        finish(self)
        lent.append(len(self._memory._lent))

    def full():
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Checkpointer, "finish", note)
    monkeypatch.setattr(Checkpointer, "_space_shortage", lambda self: None)
    original = pending_save.Save.do

    def failing(self, write, value, *args, **kwargs):
        original(self, lambda *a, **k: full(), value, *args, **kwargs)

    monkeypatch.setattr(pending_save.Save, "do", failing)
    config, run_dir = make_run("memory", max_steps=8)
    assert run_here(config) == 0
    assert steps_of(run_dir) == [] and set(lent) == {0}
