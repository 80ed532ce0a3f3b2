"""Expert parallelism on CPU processes: equal to the plain loop, resumed as an uninterrupted run, saved whole.

The launch files are shipped, or shipped ones with the same section. Each process holds two of four experts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_prep.shards import read_manifest
from tests.support.expert_runs import end_at_once_after, write_launch
from tests.support.export_runs import run_export
from tests.support.in_process import assert_equal_training, assert_equal_weights, train_plainly
from tests.support.references import LEARNING_RATE, SEED, STEPS, adamw, balanced, load
from tests.support.training import document_loss, documents, history, make_shards, run_config
from train.checkpoint import folders
from train.loop.data import load_split
from train.loop.sample_answers import choose_prompts, read_samples

NEW_TOKENS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def shards(folder, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6]}  # three rows, and a filler row for two processes with two steps
    return make_shards(folder, tiny_tokenizer.name_or_path, answers, eval_fraction=0.2)


@pytest.fixture(scope="module")
def models(folder, shards, tiny_model_dir):
    """By run. In the first one the processes' answers end after different numbers of tokens."""
    held_out = load_split(shards, read_manifest(shards), "eval")
    prompts = [prompt.prompt_ids for prompt in choose_prompts(held_out, ["short", "long"], 2, most_tokens=200)]
    assert len(prompts) == 2
    return {
        "one": end_at_once_after(tiny_model_dir("qwen3_moe"), folder / "ends", prompts, end=3),
        "two": tiny_model_dir("qwen3_moe", norm_topk_prob=True),
        "three": tiny_model_dir("qwen3_moe", tie_word_embeddings=True),
        "offload": tiny_model_dir("qwen3_moe"),
    }


OPTIONS = {
    "one": {"eval_strategy": "steps", "eval_steps": 4, "sample_max_new_tokens": NEW_TOKENS},
    "two": {"router_aux_loss_coef": 0.5, "gradient_checkpointing": True},
    # Saved right after an evaluation, which leaves weights under way.
    "three": {"gradient_checkpointing": True, "eval_strategy": "steps", "eval_steps": 2, "sample_prompts": 0},
    "offload": {},
}
SAVE_STEPS = {"three": 2}
LAUNCHES = {"two": "cpu_zero2_ep", "three": "cpu_zero3_ep"}


@pytest.fixture(scope="module")
def train(folder, shards, models, worlds):
    """Train a run, or a part of it, into a folder; the exit codes."""

    def run(name: str, launch: str, output: str, *, processes: int = 2, **more) -> list[int]:
        config = run_config(
            folder / "run.yaml",
            data=str(shards),
            model_name_or_path=str(models[name]),
            output_dir=str(folder / output),
            max_steps=STEPS,
            gradient_accumulation_steps=2,
            learning_rate=LEARNING_RATE,
            seed=SEED,
            save_strategy="steps",
            save_steps=SAVE_STEPS.get(name, 100),
            expected_world_size=processes,
            **OPTIONS[name],
        )
        return worlds.run(launch, config, folder / f"{output}.log", processes=processes, **more)

    return run


@pytest.fixture(scope="module")
def ran(folder, train):
    """The folder with a run under each ZeRO stage, not cut."""
    others = {"one": "cpu_zero1", "offload": "cpu_zero3_offload"}
    for name, launch in {**{name: write_launch(folder, base) for name, base in others.items()}, **LAUNCHES}.items():
        assert train(name, launch, name) == [0, 0], (folder / f"{name}.log").read_text()[-6000:]
        said = (folder / f"{name}.log").read_text()
        assert said.count("2 process(es), DEEPSPEED") == said.count("packed documents are isolated") == 1
        assert said.count("expert parallelism: 2 of 4 experts in each process, in 2 layers") == 1
    return folder


def steps(folder: Path) -> list[dict]:
    return [entry for entry in history(folder) if "loss" in entry]


@pytest.mark.parametrize(("name", "loss"), [("one", 1e-6), ("two", 2e-6), ("three", 1e-6), ("offload", 2e-6)])
def test_equals_the_plain_loop(name, loss, ran, shards, models):
    extra = balanced(0.5) if "router_aux_loss_coef" in OPTIONS[name] else None
    expected = train_plainly(load(models[name]), shards, STEPS, adamw, extra=extra)
    assert_equal_training(steps(ran / name), expected, loss=loss, norm=1e-5)
    assert_equal_weights(load(ran / name).state_dict(), expected.model.state_dict(), atol=1e-5)


def test_processes_answer_in_step(ran, shards, models, tiny_tokenizer):
    """Each has one of the prompts; without that they would wait for each other for ever."""
    samples = [row for row in read_samples(ran / "one" / "samples.jsonl") if row["step"] == 0]
    lengths = [len(tiny_tokenizer(row["answer"])["input_ids"]) for row in samples]
    assert lengths[1] == 1 < lengths[0], samples
    losses = [document_loss(load(models["one"]), document) for document in documents(shards, "eval")]
    [before, *_] = [entry["eval_loss"] for entry in history(ran / "one") if "eval_loss" in entry]
    assert before == pytest.approx(sum(x.item() for x, _ in losses) / sum(n for _, n in losses), rel=2e-6)


@pytest.mark.parametrize("name", ["two", "three/checkpoint-4"])
def test_a_run_is_exported_as_it_was_trained(name, ran, tmp_path):
    run_export(ran / name, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "export.json").read_text())["proof"]["difference"] == 0


@pytest.fixture(scope="module")
def cut(ran, train):
    """Runs that are stopped in steps 2 and 3, and end on four processes: each expert in two of them, or one in each."""
    ends = {"two": "cpu_zero2_ep", "three": write_launch(ran, "cpu_zero3", autoep_size=4)}
    for name, launch in LAUNCHES.items():
        output = f"{name}_cut"
        assert train(name, launch, output, stop_at=2) == [0, 0]
        assert train(name, launch, output, stop_at=3) == [0, 0]
        codes = train(name, ends[name], output, processes=4)
        assert codes == [0] * 4, (ran / f"{output}.log").read_text()[-6000:]
        assert f"expert parallelism: {2 if name == 'two' else 1} of 4 experts" in (ran / f"{output}.log").read_text()
    return ran


@pytest.mark.parametrize("name", ["two", "three"])
def test_a_cut_run_goes_on_as_its_twin(name, cut):
    """On as many processes bit for bit; on more, sums are rounded in another order."""
    got, wanted = steps(cut / f"{name}_cut"), steps(cut / name)
    assert [entry["step"] for entry in got] == list(range(1, STEPS + 1))
    for ours, twins in zip(got, wanted, strict=True):
        same = ours["step"] <= 3
        assert ours["loss"] == (twins["loss"] if same else pytest.approx(twins["loss"], rel=1e-6)), ours["step"]
        assert ours["grad_norm"] == (twins["grad_norm"] if same else pytest.approx(twins["grad_norm"], rel=1e-5))
    assert_equal_weights(load(cut / f"{name}_cut").state_dict(), load(cut / name).state_dict(), atol=1e-5)
    said = (cut / f"{name}_cut.log").read_text()
    assert re.search(r"states of 2 process\(es\) are rearranged for ZeRO-\d and 4 process\(es\)", said)


def test_checkpoints_hold_whole_models(cut):
    """Also those between: each is what the run had in that step, with all experts under transformers' names."""
    assert [found.step for found in folders.find_checkpoints(cut / "three")] == [2, 4, 5]
    for name, step, size in (("two", 3, 2), ("three", 4, 4)):
        one, other = (cut / folder / f"checkpoint-{step}" for folder in (f"{name}_cut", name))
        assert folders.read(one).extra["autoep_size"] == size
        if other.exists():
            assert_equal_weights(load(one).state_dict(), load(other).state_dict(), atol=1e-5)
        assert load(one).state_dict().keys() == load(cut / name).state_dict().keys()


def test_other_forms_of_the_experts_are_refused(cut, train):
    """Without expert parallelism before the model is loaded; under another ZeRO stage as soon as it is."""
    assert set(train("two", "cpu_zero2", "two_cut")) == {2}
    said = (cut / "two_cut.log").read_text()
    assert "was written with expert_parallel True, here it is False: DeepSpeed loads its experts only" in said
    assert "attention:" not in said
    assert train("two", "cpu_zero2_ep", "stage", stop_at=1) == [0, 0]
    assert set(train("two", "cpu_zero3_ep", "stage")) == {2}
    said = (cut / "stage.log").read_text()
    assert "was written with expert parallelism under ZeRO-2, this launch has ZeRO-3" in said
    assert set(train("two", "cpu_zero2_ep", "stage")) == {0}  # as before it goes on
