"""Modes on two processes with uneven rows, under ZeRO: each equals the same independent loop.

Five steps of two micro-batches of one row a process; one of the four rows is filler. One epoch is one step, so the
order of rows does not matter. All runs of a stage share one world.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from peft import PeftModel
from safetensors.torch import load_file

from tests.support.export_runs import run_export
from tests.support.in_process import assert_equal_training, assert_equal_weights, train_plainly
from tests.support.references import (
    LEARNING_RATE,
    LORA,
    NF4,
    SEED,
    STEPS,
    adamw,
    adapted,
    adapters,
    balanced,
    dynamic,
    load,
    nf4,
    optimizer,
    smoothed,
)
from tests.support.training import history, make_shards, run_config
from tests.support.worlds import Worlds


class Mode(NamedTuple):
    """A run and what it equals."""

    options: Mapping[str, Any]
    architecture: str = "llama"
    reference: Mapping[str, Any] = MappingProxyType({})  # arguments of the plain loop
    adapters: dict[str, Any] | None = None  # arguments of `adapted`
    loss: float = 5e-6  # relative
    norm: float = 5e-5
    weights: float | None = 2e-5  # absolute


CHECKPOINTING = {"gradient_checkpointing": True}
# With rows of one length and sdpa, as each other length and each list of document ends would be traced again.
COMPILED = {
    "torch_compile": True,
    "torch_compile_backend": "aot_eager",
    "attn_implementation": "sdpa",
    "pad_to_multiple_of": 256,
}
BALANCED = {"extra": balanced(0.5)}  # the filler row has no part in it
EIGHT_BIT = {"loss": 1e-4, "norm": 1e-3, "weights": 3e-3}  # blocks of 256 begin elsewhere in ZeRO's flat weights
QUANTISED = {"loss": 5e-4, "norm": 2e-2, "weights": None}
MODES = {
    "2": {
        "gemma3": Mode(CHECKPOINTING, "gemma3"),
        "mistral": Mode({"optim": "adamw_torch_fused"}, "mistral"),
        "label_smoothing": Mode({"label_smoothing_factor": 0.1}, reference={"losses": smoothed}),
        "dft": Mode({"loss_type": "dft"}, reference={"losses": dynamic}),
        "experts": Mode({"router_aux_loss_coef": 0.5}, "qwen3_moe", BALANCED, loss=1e-5, norm=1e-4),
        "rslora": Mode({**LORA, "use_rslora": True}, adapters={"use_rslora": True}),
        "dora": Mode({**LORA, "use_dora": True}, adapters={"use_dora": True}),
        "qlora": Mode({**LORA, **NF4}, adapters={"quantization_config": nf4()}, **QUANTISED),
        # A rounding error turns the sign that Lion steps by where its mean is near zero.
        "lion": Mode({"optim": "lion_32bit"}, reference={"make_optimizer": optimizer("lion_32bit")}, weights=1e-2),
        "8bit": Mode({"optim": "adamw_8bit"}, reference={"make_optimizer": optimizer("adamw_8bit")}, **EIGHT_BIT),
        "paged": Mode(
            {"optim": "paged_adamw_8bit"}, reference={"make_optimizer": optimizer("paged_adamw_8bit")}, **EIGHT_BIT
        ),
        "hybrid": Mode({**LORA, **CHECKPOINTING}, "lfm2", adapters={}),
        "compiled": Mode(COMPILED),
        "compiled_lora": Mode({**LORA, **COMPILED}, adapters={}),
    },
    "3": {
        "lora": Mode({**LORA, **CHECKPOINTING}, adapters={}),
        "label_smoothing": Mode({"label_smoothing_factor": 0.1}, reference={"losses": smoothed}),
        "experts": Mode({"router_aux_loss_coef": 0.5}, "qwen3_moe", BALANCED, loss=1e-5, norm=1e-4),
        "qlora": Mode({**LORA, **NF4}, adapters={"quantization_config": nf4()}, **QUANTISED),
        "hybrid": Mode(CHECKPOINTING, "qwen3_5_text"),
        "compiled": Mode({**COMPILED, **CHECKPOINTING}),
    },
    "3_offload": {"qwen3": Mode(CHECKPOINTING, "qwen3")},  # DeepSpeed's own Adam, on the CPU
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6]}  # three rows, and a filler row for two processes with two steps
    return make_shards(tmp_path_factory.mktemp("sharded"), tiny_tokenizer.name_or_path, answers)


@pytest.fixture(scope="module")
def ran(shards, worlds, tiny_model_dir, tmp_path_factory):
    """The folder with the runs of a stage, by mode; each stage is one world."""
    made: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp(f"zero{stage}")
            configs = [write_config(made[stage], name, mode) for name, mode in MODES[stage].items()]
            train_all(worlds, stage, configs, made[stage] / "log")
        return made[stage]

    def write_config(folder: Path, name: str, mode: Mode) -> Path:
        plan = {"num_train_epochs": STEPS, "gradient_accumulation_steps": 2}
        plan |= {"learning_rate": LEARNING_RATE, "seed": SEED, "disable_tqdm": True}
        paths = {"data": shards, "model_name_or_path": tiny_model_dir(mode.architecture), "output_dir": folder / name}
        named = {key: str(path) for key, path in paths.items()}
        return run_config(folder / f"{name}.yaml", **{**plan, **named, **mode.options})

    return run


def train_all(worlds: Worlds, stage: str, configs: list[Path], log: Path) -> None:
    """Two processes under ZeRO run train.sft for each config."""
    _, said = worlds.run_module(f"cpu_zero{stage}", "tests.support.sharded_runs", configs, log)
    ended = all(f"rank {rank} has run {configs[-1]}" in said for rank in (0, 1))
    assert ended, said[-6000:]
    assert said.count("2 process(es), DEEPSPEED") == said.count("packed documents are isolated") == len(configs)


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage, modes in MODES.items() for name in modes])
def test_equals_the_plain_loop(stage, name, ran, shards, tiny_model_dir):
    mode, folder = MODES[stage][name], ran(stage) / name
    base = tiny_model_dir(mode.architecture)
    model = load(base) if mode.adapters is None else adapted(base, **mode.adapters)
    expected = train_plainly(model, shards, STEPS, **{"make_optimizer": adamw, **mode.reference})
    got = [entry for entry in history(folder) if "loss" in entry]
    assert_equal_training(got, expected, loss=mode.loss, norm=mode.norm)
    if mode.weights is None:
        return
    if mode.adapters is None:
        trained, reference = load(folder).state_dict(), expected.model.state_dict()
    else:
        trained, reference = adapters(PeftModel.from_pretrained(load(base), folder)), adapters(expected.model)
    assert_equal_weights(trained, reference, atol=mode.weights)


@pytest.mark.parametrize(
    ("stage", "name", "tied"),
    [
        ("2", "gemma3", True),
        ("2", "dora", False),
        ("2", "qlora", False),
        ("3", "lora", False),
        ("3_offload", "qwen3", True),
    ],
)
def test_a_run_is_exported_as_it_was_trained(stage, name, tied, ran, tmp_path):
    """Each on its own proof; a tied head lies once in the final model and in the export."""
    run_export(ran(stage) / name, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "export.json").read_text())["proof"]["run"]
    if tied:
        for folder in (ran(stage) / name, tmp_path / "export"):
            assert "lm_head.weight" not in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_layer_is_compiled(stage, ran):
    said = (ran(stage) / "log").read_text()
    compiled = [name for name in MODES[stage] if name.startswith("compiled")]
    assert said.count("torch.compile (aot_eager): one LlamaDecoderLayer for 2") == len(compiled) > 0


def test_only_the_first_process_reads_the_weights_under_zero3(ran):
    """The others know names and shapes; DeepSpeed hands each its part."""
    said = (ran("3") / "log").read_text()
    assert "rank 0 reads weights to cpu" in said and "rank 1 reads weights to meta" in said
    assert "rank 0 reads weights to meta" not in said and "rank 1 reads weights to cpu" not in said
