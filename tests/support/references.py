"""What the tests of modes compare with: losses, optimizers and adapters by their definitions, for the plain loop."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from tests.support.in_process import document_losses

STEPS, SEED, LEARNING_RATE = 5, 7, 1e-3


def load(folder, **kwargs):
    """In fp32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": torch.float32, "attn_implementation": "sdpa", **kwargs}
    )


def adamw(model):
    """torch's, on what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0)


def smoothed(logits, targets, epsilon=0.1):
    """Label smoothing: epsilon of the weight is spread over the vocabulary."""
    kept = targets != -100
    log_probs = logits[kept].log_softmax(-1)
    return (1 - epsilon) * document_losses(logits, targets) - epsilon * log_probs.mean(-1)


def dynamic(logits, targets):
    """DFT (Wu et al., 2025): each token's loss weighted by the probability the model gives it, as a constant."""
    losses = document_losses(logits, targets)
    return losses * (-losses).exp().detach()


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


LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}


def adapted(folder, *, quantization_config=None, **options):
    """The model with the adapters that the seed gives; on quantised weights in bf16, as TRL keeps them."""
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    set_seed(SEED)
    model = get_peft_model(load(folder, quantization_config=quantization_config), LoraConfig(**settings, **options))
    if quantization_config is not None:
        for parameter in adapters(model).values():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.train()  # in eval mode some CPUs repack 4-bit weights, see train.model.loading.keep_quantised_layout


def nf4(nested=True):
    """4 bits, multiplied in fp32."""
    names = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": nested}
    return BitsAndBytesConfig(**names, bnb_4bit_compute_dtype=torch.float32)


def adapters(model):
    """The adapters' weights, by the names that a saved adapter has."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if "lora_" in name}


def balanced(coefficient):
    """The loss that balances a mixture's experts (4, of which a token takes 2), a mean over the micro-batches."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    def extra(rows):
        whole = [[torch.cat(layer) for layer in zip(*(o.router_logits for o in row), strict=True)] for row in rows]
        return coefficient * torch.stack([load_balancing_loss_func(tuple(layers), 4, 2) for layers in whole]).mean()

    return extra
