"""Bad steps: stopped before their update, or skipped as if their batch had never been there; described either way."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerCallback

from data_prep.shards import read_manifest, read_rows, shard_files
from tests.support.in_process_trainer import make_trainer
from tests.support.training import make_shards
from train.loop import bad_steps

BAD_STEP = 6
FACTORS = {"nan": (float("nan"), None), "spike": (50.0, 6.0)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 30, "long": [4] * 12}
    recipe = {"seq_len": 128, "eval_fraction": 0.0, "rows_per_shard": 8}
    return make_shards(tmp_path_factory.mktemp("guard"), tiny_tokenizer.name_or_path, answers, **recipe)


@pytest.fixture
def trainer(shards, tiny_model_dir, tmp_path, monkeypatch):
    """Makes a trainer over the rows in order, whose loss at BAD_STEP is multiplied."""
    monkeypatch.setattr(bad_steps, "FEWEST", 4)

    def make(factor: float, **options):
        options = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 2, "max_steps": 8} | options
        made = make_trainer(shards, tiny_model_dir("llama"), tmp_path / "run", **options)
        plain = made._plain_loss

        def multiplied(model, inputs, count):
            loss, outputs = plain(model, inputs, count)
            bad = made.state.global_step + 1 == BAD_STEP and made.accelerator.sync_gradients
            return loss * (factor if bad else 1.0), outputs

        made._plain_loss = multiplied
        return made

    return make


@pytest.mark.parametrize("kind", list(FACTORS))
def test_a_skipped_step_leaves_no_trace(kind, trainer, tmp_path):
    factor, sigma = FACTORS[kind]
    options = {"on_bad_step": "skip", "spike_sigma": sigma, "lr_scheduler_type": "polynomial"}
    skipping = trainer(factor, **options)
    skipping.train()
    twin = trainer(1.0, **options)
    twin.train_dataset = twin.train_dataset.select([i for i in range(16) if i // 2 != BAD_STEP - 1])
    twin.add_callback(StopAfter(7))
    twin.train()
    assert_equal_weights_and_optimizer(skipping, twin)
    logged = {entry["step"]: entry for entry in skipping.state.log_history if "loss" in entry}
    assert BAD_STEP not in logged and logged[8]["skipped_steps"] == 1
    assert all(entry["loss"] < 10 for entry in logged.values())


class StopAfter(TrainerCallback):
    """Ends training after `steps` steps, without changing the schedule."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.steps


def assert_equal_weights_and_optimizer(got, wanted):
    for (name, a), b in zip(got.model.named_parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    states = [t.optimizer.state_dict()["state"] for t in (got, wanted)]
    for index, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(value, states[1][index][key]), (index, key)


@pytest.mark.parametrize("kind", list(FACTORS))
def test_a_stop_comes_before_the_update_and_names_the_documents(kind, trainer, shards, tmp_path):
    factor, sigma = FACTORS[kind]
    stopping = trainer(factor, spike_sigma=sigma)
    with pytest.raises(bad_steps.BadStepError, match=f"before the update of step {BAD_STEP}: the loss"):
        stopping.train()
    assert all(torch.isfinite(p).all() for p in stopping.model.parameters())
    found = json.loads((tmp_path / f"run/bad_steps/step-{BAD_STEP}.json").read_text())
    manifest = read_manifest(shards)
    files = shard_files(shards, manifest, "train")
    rows = [row for file in files for row in read_rows(file)][2 * BAD_STEP - 2 : 2 * BAD_STEP]
    lengths = [[document["tokens"] for document in row["documents"]] for row in found["rows"]]
    assert lengths == [row["seq_lengths"].tolist() for row in rows]
    for entry, row in zip(found["rows"], rows, strict=True):
        located = list(read_rows(shards / entry["shard"]))[entry["row"]]
        assert located["input_ids"].tolist() == row["input_ids"].tolist()
    assert all(0 < d["loss"] < 10 for row in found["rows"] for d in row["documents"])


def test_ignoring_goes_on(trainer):
    ignoring = trainer(float("nan"), on_bad_step="ignore", max_steps=BAD_STEP + 1)
    ignoring.train()
    assert not torch.isfinite(next(ignoring.model.parameters())).all()


def test_weights_that_are_no_numbers_end_a_skipping_run(trainer, tmp_path):
    broken = trainer(1.0, on_bad_step="skip", max_steps=40)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(bad_steps.BadStepError, match="10 steps in a row"):
        broken.train()


def test_the_window_survives_a_resume(tmp_path):
    arguments = {"scaled": False, "run_dir": tmp_path, "source_names": ["a"], "shards": []}
    first, second = (bad_steps.StepGuard("skip", 3.0, **arguments) for _ in range(2))
    for step in range(30):
        first._loss = torch.tensor(1.0 + step % 3 / 10)
        assert not first.end_step(step, 1.0)
    second.restore(json.loads(json.dumps(first.state())))
    assert second._limit() == first._limit() < 2


def test_no_loss_is_a_spike_before_there_are_enough_to_compare_with(tmp_path):
    guard = bad_steps.StepGuard("stop", 3.0, scaled=False, run_dir=tmp_path, source_names=[], shards=[])
    for step in range(bad_steps.FEWEST):
        assert guard._limit() == float("inf")
        guard._loss = torch.tensor(1.0 + step % 2)
        assert not guard.end_step(step + 1, 1.0)
    assert 1.5 < guard._limit() < 4


def test_only_bad_steps_without_a_good_one_between_end_a_skipping_run_also_over_a_resume(tmp_path):
    arguments = {"scaled": False, "run_dir": tmp_path, "source_names": [], "shards": []}
    guard, most = bad_steps.StepGuard("skip", None, **arguments), bad_steps.MOST_IN_A_ROW
    for step in range(1, 3 * most):
        assert guard.end_step(step, float("nan") if step % 2 else 1.0) == bool(step % 2)
    resumed = bad_steps.StepGuard("skip", None, **arguments)
    resumed.restore(json.loads(json.dumps(guard.state())))
    assert resumed.state() == guard.state() == {"losses": [], "skipped": 3 * most // 2, "in_a_row": 1}
    for step in range(most - 2):
        assert resumed.end_step(100 + step, float("inf"))
    with pytest.raises(bad_steps.BadStepError, match=f"{most} steps in a row"):
        resumed.end_step(200, float("inf"))


def test_a_gradient_scalers_own_steps_are_not_judged_by_the_norm(tmp_path):
    guard = bad_steps.StepGuard("stop", None, scaled=True, run_dir=tmp_path, source_names=[], shards=[])
    assert not guard.end_step(1, float("inf"))
    guard._loss = torch.tensor(float("nan"))
    with pytest.raises(bad_steps.BadStepError, match="the loss is nan"):
        guard.end_step(2, 1.0)
    assert not guard.end_step(3, 1.0)  # a step's loss is its own


ROWS = [(0, ("a", 0)), (2, ("a", 2)), (3, ("b", 0)), (4, ("b", 1)), (5, (None, None))]


@pytest.mark.parametrize(("row", "place"), ROWS)
def test_a_row_is_found_by_its_number_over_all_shards(row, place, tmp_path):
    shards = [("a", 3), ("b", 2)]
    guard = bad_steps.StepGuard("stop", None, scaled=False, run_dir=tmp_path, source_names=[], shards=shards)
    assert guard._locate(row) == dict(zip(("shard", "row"), place, strict=True))
