"""What torch.compile compiles and what not; the numbers are compared in test_modes.py and test_modes_sharded.py."""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from accelerate.utils.other import compile_regions_deepspeed
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from tests.support.training import environment, make_shards, run_config
from train.config.compile_defaults import compile_layers_by_default
from train.loop.sample_answers import Prompt, Sampler
from train.loop.trainer import PackedSFTTrainer
from train.model import compiling, isolation
from train.model.compiling import describe
from train.run import log

NAMES = ("BACKEND", "MODE", "USE_FULLGRAPH", "USE_DYNAMIC", "USE_REGIONAL_COMPILATION")
LAUNCHED = dict(zip(NAMES, ("NO", "default", "False", "False", "False"), strict=True))  # by accelerate launch
IDS = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


def plugin(monkeypatch, given: dict[str, str]) -> TorchDynamoPlugin:
    """As transformers makes it where `torch_compile` is set and the environment holds what is given."""
    for name in NAMES:
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", value)
    compile_layers_by_default()
    return TorchDynamoPlugin(backend="inductor", mode=None, dynamic=None)


@pytest.mark.parametrize(
    ("given", "by_layer", "dynamic"),
    [
        ({}, True, None),
        ({"USE_REGIONAL_COMPILATION": "false"}, False, None),
        ({"USE_REGIONAL_COMPILATION": "true"}, True, None),
        (LAUNCHED, True, None),
        ({**LAUNCHED, "USE_REGIONAL_COMPILATION": "True"}, True, None),
        ({**LAUNCHED, "USE_DYNAMIC": "True"}, True, True),
        ({**LAUNCHED, "BACKEND": "INDUCTOR"}, False, False),  # its file has a dynamo_config of the user's
    ],
)
def test_by_layer_unless_the_user_says_otherwise(given, by_layer, dynamic, monkeypatch):
    monkeypatch.setattr(os, "environ", copy.deepcopy(os.environ))  # as `datasets.map` with processes leaves it
    made = plugin(monkeypatch, given)
    assert made.use_regional_compilation is by_layer and made.dynamic is dynamic


def test_what_accelerate_launch_writes(tmp_path):
    """Its own words, should they change."""
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / "show.py"
    script.write_text("import os; print({k: v for k, v in os.environ.items() if k.startswith('ACCELERATE_DYNAMO_')})")
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file"]
    command += ["configs/accelerate/cpu_single.yaml", script]
    said = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=True).stdout
    assert str({f"ACCELERATE_DYNAMO_{name}": value for name, value in LAUNCHED.items()}) in said


def test_what_is_compiled_is_said(tiny_model_dir, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    by_layer = plugin(monkeypatch, {})
    assert describe(by_layer, model) == "torch.compile (inductor): one LlamaDecoderLayer for 2"
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert describe(by_layer, adapted) == "torch.compile (inductor): one LlamaDecoderLayer for 2"
    by_layer.mode = "reduce-overhead"
    assert describe(by_layer, model).startswith("torch.compile (inductor, reduce-overhead): one")
    whole = plugin(monkeypatch, {"USE_REGIONAL_COMPILATION": "false"})
    assert describe(whole, model) == "torch.compile (inductor): the whole model"
    assert describe(by_layer, torch.nn.Linear(1, 1)).endswith("the whole model")
    assert describe(TorchDynamoPlugin(backend="no"), model) is None


class Compiled:
    """A tiny model compiled by layer as under DeepSpeed, and how often that was."""

    def __init__(self, folder):
        torch._dynamo.reset()
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
        add_fused_lm_head(self.model)
        compile_regions_deepspeed(self.model, backend=self.compile)
        self.graphs = 0

    def compile(self, graph, inputs):
        self.graphs += 1
        return graph.forward

    def trainer(self):
        """As much of a trainer as is asked."""
        state = SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(backend="eager"))
        accelerator = SimpleNamespace(state=state, autocast=torch.no_grad)
        trainer = SimpleNamespace(
            accelerator=accelerator, is_deepspeed_enabled=True, is_fsdp_enabled=False, row_group=None
        )
        trainer.computing = nullcontext
        trainer.model = trainer.model_wrapped = self.model
        trainer.train_dataset, trainer.state = Dataset.from_list([{"input_ids": IDS}]), SimpleNamespace(global_step=1)
        return trainer

    def train(self):
        """One forward pass of training."""
        self.model.train()(input_ids=torch.tensor([IDS]), labels=torch.tensor([IDS]), use_cache=False).loss.backward()


@pytest.fixture
def compiled(tiny_model_dir):
    yield Compiled(tiny_model_dir("llama"))
    torch._dynamo.reset()


def test_the_start_up_proof_compiles_nothing(compiled, capsys):
    args = SimpleNamespace(device=torch.device("cpu"), bf16=False, fp16=False)
    log.set_up()
    isolation.make_callback(compiled.trainer()).on_train_begin(args, None, None)
    assert "packed documents are isolated" in capsys.readouterr().out and compiled.graphs == 0
    compiled.train()
    assert compiled.graphs > 0


def test_samples_compile_nothing(compiled, tiny_tokenizer, tmp_path):
    compiled.train()
    before = compiled.graphs
    prompts = [Prompt(source="a", prompt_ids=IDS[:n], reference_ids=IDS[n:]) for n in (5, 9)]
    sampler = Sampler(prompts, tiny_tokenizer, tmp_path, end_token_ids=[3], max_new_tokens=3)
    assert len(PackedSFTTrainer._samples(compiled.trainer(), sampler)) == 2
    assert compiled.graphs == before > 0
    compiled.train()
    assert compiled.graphs == before  # what was compiled is still there


def test_a_whole_run_says_what_it_compiles_and_compiles_a_layer_once(tiny_tokenizer, tiny_model_dir, tmp_path, capsys):
    """Rows filled to one length: with evaluation and samples, a few graphs in all, however many layers."""
    from torch._dynamo.utils import counters

    from tests.support.in_process import as_a_fresh_process
    from train.sft import main

    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1, 2, 3, 1, 5, 1] * 4}, eval_fraction=0.3)
    found = []
    for layers in (2, 6):
        names = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama", num_hidden_layers=layers))}
        how = {"torch_compile": True, "torch_compile_backend": "eager"}
        how |= {"attn_implementation": "sdpa", "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
        one = {"expected_world_size": 1, "expected_distributed_type": "NO", "disable_tqdm": True}
        folder = tmp_path / str(layers)
        config = run_config(
            tmp_path / "run.yaml", output_dir=str(folder), sample_max_new_tokens=3, **names, **how, **one
        )
        with as_a_fresh_process():
            counters.clear()
            assert main(["--config", str(config)]) == 0
            found.append(counters["stats"]["unique_graphs"])
        said = capsys.readouterr().out
        assert f"torch.compile (eager): one LlamaDecoderLayer for {layers}" in said and "uncompiled" not in said
        assert "rows are filled up to pad_to_multiple_of: 256" in said
        assert (folder / "samples.jsonl").exists()
    assert found[0] == found[1] <= 8


def test_what_cannot_be_compiled_trains_as_it_is(tiny_tokenizer, tiny_model_dir, tmp_path, monkeypatch, caplog):
    """The same losses as without torch_compile, and a line that says so."""
    from tests.support.in_process import train_here

    def broken(graph, inputs, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1, 2, 3]})
    names = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama")), "attn_implementation": "sdpa"}
    plain = train_here(tmp_path / "plain", max_steps=2, logging_steps=1, **names)
    found = train_here(tmp_path / "broken", max_steps=2, logging_steps=1, torch_compile=True, **names)
    assert [entry["loss"] for entry in found] == [entry["loss"] for entry in plain]
    assert "nothing could be compiled" in caplog.text and "no compiler here" in caplog.text


@pytest.mark.parametrize(("given", "balanced", "expected"), [(None, False, 64), (32, False, 32), (None, True, None)])
def test_rows_are_filled_up_for_the_compiler(given, balanced, expected):
    """Unless the user has said how, or a mixture's balancing loss would count what fills them."""
    accelerator = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(backend="eager")))
    collator = SimpleNamespace(pad_to_multiple_of=given)
    trainer = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(pad_to_multiple_of=given))
    trainer.aux_loss_enabled, trainer.data_collator = balanced, SimpleNamespace(collator=collator)
    trainer.add_callback = lambda callback: None
    compiling.install(trainer, 64)
    torch._dynamo.config.suppress_errors = False
    assert trainer.args.pad_to_multiple_of == collator.pad_to_multiple_of == expected


def test_what_is_said_of_tf32():
    """torch's old getter raises after transformers' new setter, and inductor of today reads the new one."""
    import inspect

    from torch._inductor.template_heuristics import triton
    from transformers.utils.import_utils import enable_tf32

    before = torch.backends.fp32_precision
    try:
        enable_tf32(True)
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.backends.cuda.matmul.allow_tf32  # noqa: B018
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        enable_tf32(False)
        assert torch.backends.cuda.matmul.allow_tf32 is False  # so tf32: false is a way out
    finally:
        torch.backends.fp32_precision = before
    assert "torch.backends.cuda.matmul.allow_tf32" not in inspect.getsource(triton)
