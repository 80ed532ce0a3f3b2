"""Every mode of training that runs on a CPU equals an independent loop: one process, unpacked, fp32, own loss.

Five steps of two micro-batches with two rows each, of uneven length; one epoch is one step, so the order of rows does
not matter. Loss, gradient norm and weights are compared.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from tests.in_process import assert_equal_training, assert_equal_weights, document_losses, train_here, train_plainly
from tests.training import documents, make_shards

STEPS, SEED, LEARNING_RATE = 5, 7, 1e-3
ANSWERS = {"short": [1] * 12, "long": [6, 6]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(tmp_path_factory.mktemp("modes"), tiny_tokenizer.name_or_path, ANSWERS)


def run(folder, shards, model, **options):
    """The logged steps of train.sft."""
    plan = {"num_train_epochs": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    base = {"data": str(shards), "model_name_or_path": str(model), "seed": SEED, "learning_rate": LEARNING_RATE}
    return train_here(folder, **{**plan, **base, **options})


def load(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": torch.float32, "attn_implementation": "sdpa", **kwargs}
    )


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0)


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
    assert_equal_weights(final(tmp_path), reference(architecture).model.state_dict(), atol=2e-5)


SAME = {
    "sdpa": {"attn_implementation": "sdpa"},
    "eager": {"attn_implementation": "eager"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "workers": {"dataloader_num_workers": 1},
}


@pytest.mark.parametrize("mode", SAME)
def test_what_must_not_change_the_numbers(mode, shards, reference, tiny_model_dir, tmp_path):
    got = run(tmp_path, shards, tiny_model_dir("llama"), **SAME[mode])
    assert_equal_training(got, reference("llama"), loss=5e-6, norm=5e-5)
    assert_equal_weights(final(tmp_path), reference("llama").model.state_dict(), atol=2e-5)


def smoothed(logits, targets, epsilon=0.1):
    """Label smoothing: epsilon of the weight is spread over the vocabulary."""
    kept = targets != -100
    log_probs = logits[kept].log_softmax(-1)
    return (1 - epsilon) * document_losses(logits, targets) - epsilon * log_probs.mean(-1)


def dynamic(logits, targets):
    """DFT (Wu et al., 2025): each token's loss weighted by the probability the model gives it, as a constant."""
    losses = document_losses(logits, targets)
    return losses * (-losses).exp().detach()


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


def optimizer(name):
    """The optimizer's own class, called as its paper or package says, on the plain loop's gradients."""
    import bitsandbytes as bnb
    from transformers import Adafactor

    adam = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    lion = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "weight_decay": 0.0}
    makers = {
        "adamw_8bit": lambda p: bnb.optim.AdamW(p, **adam, optim_bits=8),
        "paged_adamw_8bit": lambda p: bnb.optim.AdamW(p, **adam, optim_bits=8, is_paged=True),
        "paged_adamw_32bit": lambda p: bnb.optim.AdamW(p, **adam, is_paged=True),
        "lion_32bit": lambda p: bnb.optim.Lion(p, **lion),
        "lion_8bit": lambda p: bnb.optim.Lion(p, **lion, optim_bits=8),
        "paged_lion_8bit": lambda p: bnb.optim.Lion(p, **lion, optim_bits=8, is_paged=True),
        "adafactor": lambda p: Adafactor(p, lr=LEARNING_RATE, scale_parameter=False, relative_step=False),
    }
    return lambda model: makers[name](list(model.parameters()))


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
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}


def adapted(model, **options):
    """The adapters that the seed gives, on a model loaded after it."""
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**settings, **options))


def adapters(model):
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(kind, shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **LORA, **ADAPTERS[kind])
    set_seed(SEED)
    expected = train_plainly(adapted(load(base), **ADAPTERS[kind]), shards, STEPS, adamw)
    assert_equal_training(got, expected, loss=5e-6, norm=5e-5)
    trained = adapters(PeftModel.from_pretrained(load(base), tmp_path / "run"))
    assert_equal_weights(trained, adapters(expected.model), atol=2e-5)


@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_qlora(nested, shards, tiny_model_dir, tmp_path):
    """4-bit weights (nf4), adapters in bf16 as TRL keeps them: the same adapters on the same quantised model."""
    base = tiny_model_dir("llama")
    quantised = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": nested}
    got = run(tmp_path, shards, base, **LORA, **quantised)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )
    set_seed(SEED)
    model = adapted(load(base, quantization_config=settings))
    for parameter in adapters(model).values():
        parameter.data = parameter.data.to(torch.bfloat16)
    expected = train_plainly(model, shards, STEPS, adamw)
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


def balanced(model, shards, coefficient):
    """Sum over trained tokens and the experts' balancing loss of one step, for a step of one micro-batch."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    losses, routers = [], []
    for ids, labels, _ in documents(shards, "train"):
        outputs = model(input_ids=torch.tensor([ids]), use_cache=False, output_router_logits=True)
        losses.append(document_losses(outputs.logits[0, :-1], torch.tensor(labels[1:])))
        routers.append(outputs.router_logits)
    whole = tuple(torch.cat(layer) for layer in zip(*routers, strict=True))
    return torch.cat(losses).mean() + coefficient * load_balancing_loss_func(whole, 4, 2)


def test_the_balancing_loss_of_a_mixture_of_experts(shards, tiny_model_dir, tmp_path):
    """It is a mean over the tokens of a micro-batch, packed or not: one micro-batch holds all rows here."""
    folder = tiny_model_dir("qwen3_moe")
    whole = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    got = run(tmp_path, shards, folder, router_aux_loss_coef=0.5, **whole)
    model = load(folder)
    loss = balanced(model, shards, 0.5)
    loss.backward()
    assert got[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    assert got[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_adapters_on_8_bit_weights(shards, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    got = run(tmp_path, shards, base, **LORA, load_in_8bit=True, num_train_epochs=2)
    set_seed(SEED)
    model = adapted(load(base, quantization_config=BitsAndBytesConfig(load_in_8bit=True)))
    for parameter in adapters(model).values():
        parameter.data = parameter.data.to(torch.bfloat16)
    expected = train_plainly(model, shards, 2, adamw)
    assert_equal_training(got, expected, loss=2e-3, norm=0.1)
