"""Documents of uneven lengths, packed into a row and alone, and what a model gives for them."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

LENGTHS = [23, 64, 1, 9, 37, 9]


def load(folder):
    """In fp32."""
    for attention in ("sdpa", "eager"):
        try:
            return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
        except ValueError:  # a model without attention
            continue
    raise AssertionError


def documents() -> list[torch.Tensor]:
    """Their token ids."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(4, 260, (n,), generator=generator) for n in LENGTHS]


def packed(model, parts: list[torch.Tensor], **more) -> torch.Tensor:
    """The logits of one packed row."""
    ends = torch.tensor([0, *[len(part) for part in parts]]).cumsum(0).int()
    numbers = torch.repeat_interleave(torch.arange(len(parts)), ends.diff())[None].int()
    positions = torch.cat([torch.arange(len(part)) for part in parts])[None]
    bounds = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "seq_idx": numbers}
    longest = int(ends.diff().max())
    bounds |= {"max_length_q": longest, "max_length_k": longest, "use_cache": False, **more}
    return model(input_ids=torch.cat(parts)[None], position_ids=positions, **bounds).logits[0]


def gradients(model, logits: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of all weights, by a loss that weighs every logit differently."""
    model.zero_grad()
    (logits * torch.sin(torch.arange(logits.numel()).view_as(logits))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal_gradients(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Each weight's, relative to its size."""
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
