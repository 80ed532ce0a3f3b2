"""Every mode of training that runs on a CPU equals an independent loop: one process, unpacked, fp32, own loss.

Five steps of two micro-batches with two rows each, of uneven length; one epoch is one step, so the order of rows does
not matter. Loss, gradient norm and weights are compared.
"""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig

from tests.in_process import assert_equal_training, assert_equal_weights, train_here, train_plainly
from tests.references import (
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
from tests.training import make_shards

ANSWERS = {"short": [1] * 12, "long": [6, 6]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(tmp_path_factory.mktemp("modes"), tiny_tokenizer.name_or_path, ANSWERS)


def run(folder, shards, model, **options):
    """The logged steps of train.sft."""
    plan = {"num_train_epochs": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    base = {"data": str(shards), "model_name_or_path": str(model), "seed": SEED, "learning_rate": LEARNING_RATE}
    return train_here(folder, **{**plan, **base, **options})


def final(folder):
    return load(folder / "run").state_dict()


@pytest.fixture(scope="module")
def reference(shards, tiny_model_dir):
    """The plain loop with AdamW, by architecture, made once each."""
    made = {}

    def train(architecture):
        if architecture not in made:
            made[architecture] = train_plainly(load(tiny_model_dir(architecture)), shards, STEPS, adamw)
        return made[architecture]

    return train


FULL = {
    "llama": {},
    "qwen3": {"optim": "adamw_torch_fused"},
    "gemma3": {},
    "mistral": {},
    "qwen3_moe": {"router_aux_loss_coef": 0.0},
}


@pytest.mark.parametrize("architecture", FULL)
def test_full_fine_tuning(architecture, shards, reference, tiny_model_dir, tmp_path, capsys):
    got = run(tmp_path, shards, tiny_model_dir(architecture), **FULL[architecture])
    said = capsys.readouterr().out
    assert "attention: varlen (each document by itself, on the CPU" in said
    assert "packed documents are isolated: packed and separate differ by" in said
    assert_equal_training(got, reference(architecture), loss=5e-6, norm=5e-5)
    # One weight of the experts' model has a first gradient of 1e-9, below Adam's epsilon: rounding decides its step.
    atol = 1e-4 if architecture == "qwen3_moe" else 2e-5
    assert_equal_weights(final(tmp_path), reference(architecture).model.state_dict(), atol=atol)


SAME = {
    "sdpa": {"attn_implementation": "sdpa"},
    "eager": {"attn_implementation": "eager"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "workers": {"dataloader_num_workers": 1},
    # Traced and differentiated as for a GPU; the kernels are torch's own.
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager", "attn_implementation": "sdpa"},
}


@pytest.mark.parametrize("mode", SAME)
def test_what_must_not_change_the_numbers(mode, shards, reference, tiny_model_dir, tmp_path):
    got = run(tmp_path, shards, tiny_model_dir("llama"), **SAME[mode])
    assert_equal_training(got, reference("llama"), loss=5e-6, norm=5e-5)
    assert_equal_weights(final(tmp_path), reference("llama").model.state_dict(), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "losses"),
    [({"label_smoothing_factor": 0.1}, smoothed), ({"loss_type": "dft"}, dynamic)],
    ids=["ls", "dft"],
)
def test_other_losses(options, losses, shards, tiny_model_dir, tmp_path):
    got = run(tmp_path, shards, tiny_model_dir("llama"), **options)
    expected = train_plainly(load(tiny_model_dir("llama")), shards, STEPS, adamw, losses)
    assert_equal_training(got, expected, loss=5e-6, norm=5e-5)
    assert_equal_weights(final(tmp_path), expected.model.state_dict(), atol=2e-5)


# Lion's update is the sign of a mean: a rounding error flips it where the mean is near zero, by 2 x the learning rate.
OPTIMIZERS = {
    "adamw_8bit": 1e-3, "paged_adamw_8bit": 1e-3, "paged_adamw_32bit": 2e-5, "adafactor": 2e-5,
    "lion_32bit": 1e-2, "lion_8bit": 1e-2, "paged_lion_8bit": 1e-2,
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, shards, tiny_model_dir, tmp_path):
    got = run(tmp_path, shards, tiny_model_dir("llama"), optim=name)
    expected = train_plainly(load(tiny_model_dir("llama")), shards, STEPS, optimizer(name))
    assert_equal_training(got, expected, loss=1e-4, norm=1e-3)
    assert_equal_weights(final(tmp_path), expected.model.state_dict(), atol=OPTIMIZERS[name])


ADAPTERS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(kind, shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **LORA, **ADAPTERS[kind])
    expected = train_plainly(adapted(base, **ADAPTERS[kind]), shards, STEPS, adamw)
    assert_equal_training(got, expected, loss=5e-6, norm=5e-5)
    trained = adapters(PeftModel.from_pretrained(load(base), tmp_path / "run"))
    assert_equal_weights(trained, adapters(expected.model), atol=2e-5)


@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_qlora(nested, shards, tiny_model_dir, tmp_path):
    """4-bit weights (nf4): the same adapters on the same quantised model."""
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **{**LORA, **NF4, "use_bnb_nested_quant": nested})
    expected = train_plainly(adapted(base, quantization_config=nf4(nested)), shards, STEPS, adamw)
    assert_equal_training(got, expected, loss=5e-4, norm=2e-2)


def test_neftune_noise_is_that_of_each_document(shards, tiny_model_dir, tmp_path, monkeypatch):
    """Of the packed documents' own lengths, as transformers' hook would give it to each alone; none in evaluation."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    from train import neftune

    lengths, width, alpha = [3, 9, 30], 32, 5.0
    ends = torch.tensor([0, 3, 12, 42], dtype=torch.int32)
    embedding = torch.nn.Embedding(1, 1).train()
    embedding.neftune_noise_alpha = alpha
    torch.manual_seed(0)
    packed = torch.cat([neftune.noise(torch.zeros(1, 42, width), ends, alpha) for _ in range(50)])
    for part, length in zip(packed.split(lengths, dim=1), lengths, strict=True):
        alone = neftune_post_forward_hook(embedding, None, torch.zeros(200, length, width))
        assert part.abs().max().item() == pytest.approx(alone.abs().max().item(), rel=0.02)
        assert part.std().item() == pytest.approx(alone.std().item(), rel=0.05)

    calls = []
    monkeypatch.setattr(
        neftune, "noise", lambda e, ends, alpha: calls.append((ends.tolist(), alpha)) or torch.ones_like(e)
    )
    got = run(tmp_path, shards, tiny_model_dir("llama"), neftune_noise_alpha=alpha, eval_strategy="no")
    assert len(calls) == STEPS * 2 and {alpha for _, alpha in calls} == {5.0}
    assert all(len(ends) > 3 for ends, _ in calls)
    model = load(tiny_model_dir("llama"))
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + 1)
    expected = train_plainly(model, shards, 1, adamw)
    assert got[0]["loss"] == pytest.approx(expected.losses[0], rel=5e-6)


def test_bf16_follows_the_reference(shards, reference, tiny_model_dir, tmp_path):
    """Mixed precision: weights and updates in fp32, products in bf16."""
    got = run(tmp_path, shards, tiny_model_dir("llama"), bf16=True)
    assert_equal_training(got, reference("llama"), loss=5e-3, norm=5e-2)
    weights = reference("llama").model.state_dict()
    assert_equal_weights(final(tmp_path), weights, atol=2 * LEARNING_RATE * STEPS)  # Adam's steps are signs at first


def test_the_balancing_loss_of_a_mixture_of_experts(shards, tiny_model_dir, tmp_path):
    """It is a mean over the tokens of a micro-batch, packed or not: of a row here."""
    folder = tiny_model_dir("qwen3_moe")
    rows = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    got = run(tmp_path, shards, folder, router_aux_loss_coef=0.5, **rows)
    expected = train_plainly(load(folder), shards, STEPS, adamw, extra=balanced(0.5))
    assert_equal_training(got, expected, loss=1e-5, norm=1e-4)
    assert_equal_weights(final(tmp_path), expected.model.state_dict(), atol=2e-5)


def test_adapters_on_8_bit_weights(shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **LORA, load_in_8bit=True)
    model = adapted(base, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert_equal_training(got, train_plainly(model, shards, STEPS, adamw), loss=2e-3, norm=0.1)
