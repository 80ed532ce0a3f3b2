"""Every mode of training that runs on a CPU equals an independent loop: one process, unpacked, fp32, own loss.

Five steps of two micro-batches with two rows each, of uneven length; one epoch is one step, so the order of rows does
not matter. Loss, gradient norm and weights are compared.
"""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig

from tests.conftest import HYBRIDS
from tests.support.in_process import assert_equal_training, assert_equal_weights, train_here, train_plainly
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
from tests.support.training import documents, make_shards
from train.model import bf16_copies

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
    # With a state in some layers.
    "lfm2": {"gradient_checkpointing": True},
    "qwen3_5_text": {},
}


@pytest.mark.parametrize("architecture", FULL)
def test_full_fine_tuning(architecture, shards, reference, tiny_model_dir, tmp_path, capsys):
    got = run(tmp_path, shards, tiny_model_dir(architecture), **FULL[architecture])
    said = capsys.readouterr().out
    assert "attention: varlen (each document by itself, on the CPU" in said
    assert ("one document a row, as" in said) == (architecture in HYBRIDS)
    assert "packed documents are isolated: they differ from separate ones by" in said
    assert_equal_training(got, reference(architecture), loss=5e-6, norm=5e-5)
    # One weight of the experts' model has a first gradient of 1e-9, below Adam's epsilon: rounding, which differs from
    # one CPU to another, decides its step.
    atol = 2e-4 if architecture == "qwen3_moe" else 2e-5
    assert_equal_weights(final(tmp_path), reference(architecture).model.state_dict(), atol=atol)


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager", "attn_implementation": "sdpa"}
ONE_LENGTH = {**COMPILED, "pad_to_multiple_of": 512}  # another length is traced again, for symbols: most of the time
SAME = {
    "sdpa": {"attn_implementation": "sdpa"},
    "eager": {"attn_implementation": "eager"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "workers": {"dataloader_num_workers": 1},
    # Traced and differentiated as for a GPU, by layer; the kernels are torch's own.
    "compiled": COMPILED,
    "compiled_checkpointing": {**COMPILED, "gradient_checkpointing": True},
    "compiled_padded": ONE_LENGTH,
    "padded": {"pad_to_multiple_of": 100},
    "padded_sdpa": {"pad_to_multiple_of": 100, "attn_implementation": "sdpa"},
}


@pytest.mark.parametrize("mode", SAME)
def test_what_must_not_change_the_numbers(mode, shards, reference, tiny_model_dir, tmp_path):
    got = run(tmp_path, shards, tiny_model_dir("llama"), **SAME[mode])
    assert_equal_training(got, reference("llama"), loss=5e-6, norm=5e-5)
    assert got[-1]["num_tokens"] == STEPS * sum(len(ids) for ids, _, _ in documents(shards, "train"))
    assert_equal_weights(final(tmp_path), reference("llama").model.state_dict(), atol=2e-5)


def test_the_whole_model_compiled(shards, reference, tiny_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "false")
    got = run(tmp_path, shards, tiny_model_dir("llama"), **COMPILED)
    assert "torch.compile (aot_eager): the whole model" in capsys.readouterr().out
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


@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in ADAPTERS), ("lora", ONE_LENGTH)])
def test_adapters(kind, more, shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **LORA, **ADAPTERS[kind], **more)
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

    from train.model import neftune
    from train.model.sequence_parallel import Part

    lengths, width, alpha = [3, 9, 30], 32, 5.0
    ends = torch.tensor([0, 3, 12, 42], dtype=torch.int32)
    embedding = torch.nn.Embedding(1, 1).train()
    embedding.neftune_noise_alpha = alpha
    torch.manual_seed(0)
    packed = torch.cat([neftune.noise(torch.zeros(1, 42, width), ends, alpha, Part()) for _ in range(50)])
    for part, length in zip(packed.split(lengths, dim=1), lengths, strict=True):
        alone = neftune_post_forward_hook(embedding, None, torch.zeros(200, length, width))
        assert part.abs().max().item() == pytest.approx(alone.abs().max().item(), rel=0.02)
        assert part.std().item() == pytest.approx(alone.std().item(), rel=0.05)

    calls = []
    monkeypatch.setattr(
        neftune, "noise", lambda e, ends, alpha, part: calls.append((ends.tolist(), alpha)) or torch.ones_like(e)
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


COPIES = {"bf16": True, "bf16_copies": True, "keep_logits_gib": 1.0}


@pytest.mark.parametrize("more", [{}, ONE_LENGTH, {"gradient_checkpointing": True, "optim": "adamw_torch_fused"}])
def test_copies_of_the_weights_in_fp32(more, shards, reference, tiny_model_dir, tmp_path, monkeypatch):
    """Copies change nothing but the precision: here they are in fp32, and with them all else."""
    monkeypatch.setattr(bf16_copies, "DTYPE", torch.float32)
    got = run(tmp_path, shards, tiny_model_dir("qwen3"), **COPIES, **more)
    assert_equal_training(got, reference("qwen3"), loss=5e-6, norm=5e-5)
    assert_equal_weights(final(tmp_path), reference("qwen3").model.state_dict(), atol=2e-5)


def test_bf16_copies_follow_the_reference(shards, reference, tiny_model_dir, tmp_path):
    """The final weights are the fp32 ones: they are not those that bf16 can hold."""
    got = run(tmp_path, shards, tiny_model_dir("qwen3"), **COPIES)
    assert_equal_training(got, reference("qwen3"), loss=5e-3, norm=5e-2)
    assert [entry["loss"] for entry in got] != pytest.approx(reference("qwen3").losses, rel=2e-5)  # it is in bf16
    weights = final(tmp_path)
    assert_equal_weights(weights, reference("qwen3").model.state_dict(), atol=2 * LEARNING_RATE * STEPS)
    norm = weights["model.norm.weight"]
    assert norm.dtype == torch.float32 and not torch.equal(norm, norm.to(torch.bfloat16).float())


def test_a_run_with_copies_resumes_exactly(shards, tiny_model_dir, tmp_path):
    """What is saved is as without copies: nothing else has to be."""
    options = {**COPIES, "lr_scheduler_type": "constant", "save_strategy": "epoch", "learning_rate": LEARNING_RATE}
    whole = run(tmp_path / "whole", shards, tiny_model_dir("qwen3"), **options)
    for epochs in (2, STEPS):
        parts = run(tmp_path / "parts", shards, tiny_model_dir("qwen3"), **options, num_train_epochs=epochs)
    assert [entry["loss"] for entry in parts] == [entry["loss"] for entry in whole]
    assert [entry["grad_norm"] for entry in parts] == [entry["grad_norm"] for entry in whole]
    assert_equal_weights(final(tmp_path / "parts"), final(tmp_path / "whole"), atol=0)


def test_the_balancing_loss_of_a_mixture_of_experts(shards, tiny_model_dir, tmp_path):
    """It is a mean over the tokens of a micro-batch, packed or not: of a row here."""
    folder = tiny_model_dir("qwen3_moe")
    rows = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    got = run(tmp_path, shards, folder, router_aux_loss_coef=0.5, **rows)
    expected = train_plainly(load(folder), shards, STEPS, adamw, extra=balanced(0.5))
    assert_equal_training(got, expected, loss=1e-5, norm=1e-4)
    assert_equal_weights(final(tmp_path), expected.model.state_dict(), atol=2e-5)


def test_autocast_does_not_reach_experts(tiny_model_dir, monkeypatch):
    """As the preflight's note says: in fp32, unless their weights are in half precision."""
    real, seen = torch.nn.functional.grouped_mm, []

    def recording(inputs, weight, **kwargs):
        seen.append((inputs.dtype, weight.dtype))
        return real(inputs, weight, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", recording)
    for dtype in (torch.float32, torch.bfloat16):
        seen.clear()
        model = load(tiny_model_dir("qwen3_moe"), dtype=dtype).train()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=torch.arange(4, 24)[None], use_cache=False)
        assert len(seen) == 4 and set(seen) == {(dtype, dtype)}


def test_padding_without_an_embedding_is_refused(tiny_model_dir):
    from train.model.loading import check_vocabulary

    model, manifest = load(tiny_model_dir("llama")), {"splits": {"train": {"shards": [{"max_token_id": 5}]}}}
    rows = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(model, manifest, rows - 1)
    with pytest.raises(ValueError, match=f"the tokenizer pads with the id {rows}, .* leave out pad_to_multiple_of"):
        check_vocabulary(model, manifest, rows)


def test_adapters_on_8_bit_weights(shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **LORA, load_in_8bit=True)
    model = adapted(base, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert_equal_training(got, train_plainly(model, shards, STEPS, adamw), loss=2e-3, norm=0.1)
