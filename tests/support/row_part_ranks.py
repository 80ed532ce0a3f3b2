"""Packed rows in parts, through the trainer's collator and our attention: exact or not.

In worlds of tests/train/model/test_sequence_parallel.py, with one argument: OUT.json.

The loss and gradients of a row that 2, 3 or 4 ranks hold in parts, against its documents one at a time by transformers'
own attention on one rank. OUT.json: for each case how far the loss (relative) and the gradients are off, and those of a
control whose documents are joined. "proof": what the start-up proof says of three attention functions.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from train.loop.data import SourceCollator
from train.model import isolation, sequence_parallel, varlen

LENGTHS = [5, 37, 1, 90, 2, 64, 23, 11]  # 233 tokens: parts end within documents, and the last one is filled up
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 257,
    "initializer_range": 0.2,
}
# Latent attention: keys wider than values, one head of keys and values for each query head.
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 8}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}


def configs() -> dict[str, tuple[Any, list[int]]]:
    """By name: a model's configuration, and the numbers of ranks that hold its rows."""

    def of(kind: Any, kv_heads: int, **more: Any) -> Any:
        return kind(**SIZES, num_attention_heads=12, num_key_value_heads=kv_heads, **{"head_dim": 16, **more})

    latent = AutoConfig.for_model(
        "deepseek_v3", **SIZES, **LATENT, num_attention_heads=12, num_key_value_heads=12, first_k_dense_replace=2
    )
    return {
        **{f"llama {kv}": (of(LlamaConfig, kv), ranks) for kv, ranks in ((1, [2, 4]), (2, [4]), (3, [2, 4]), (4, [3]))},
        "qwen3 12": (of(Qwen3Config, 12), [2]),
        "gemma3 2": (of(Gemma3TextConfig, 2, **WINDOW), [3]),
        "latent 12": (latent, [2]),
    }


def rows(kind: str) -> list[dict[str, Any]]:
    """One packed row; every token is trained but the first of a document. `kind`: "packed" or "joined"."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 257, (sum(LENGTHS),), generator=random).tolist()
    lengths = LENGTHS if kind == "packed" else [sum(LENGTHS)]
    starts = torch.tensor(LENGTHS).cumsum(0) - torch.tensor(LENGTHS)
    labels = torch.tensor(ids).index_fill(0, starts, -100).tolist()
    return [{"input_ids": ids, "labels": labels, "seq_lengths": lengths, "sources": [0] * len(lengths)}]


def sum_of_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[0].float(), targets[0], ignore_index=-100, reduction="sum")


def by_parts(model: Any, group: Any, kind: str) -> torch.Tensor:
    """This rank's share of the loss of the row, with a backward pass."""
    part = sequence_parallel.part_of(group)
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=part.size)
    batch = SourceCollator(collator, part)(rows(kind))
    targets = batch.pop("shift_labels")
    inputs = {name: x for name, x in batch.items() if name not in ("labels", "source_ids")}
    logits = model(**inputs, **sequence_parallel.arguments(group), use_cache=False).logits
    return sum_of_losses(logits, targets) / (sum(LENGTHS) - len(LENGTHS))


def separately(model: Any) -> torch.Tensor:
    """The same, one document at a time."""
    ids = torch.tensor(rows("packed")[0]["input_ids"])
    found = [document[None] for document in ids.split(LENGTHS) if len(document) > 1]
    losses = [sum_of_losses(model(input_ids=d, use_cache=False).logits[:, :-1], d[:, 1:]) for d in found]
    return torch.stack(losses).sum() / (sum(LENGTHS) - len(LENGTHS))


def backward(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    """The loss, and the gradient of each parameter."""
    model.zero_grad()
    loss.backward()
    return [loss.detach().clone(), *(p.grad.clone() for p in model.parameters())]


def compare(config: Any, group: Any) -> dict[str, float]:
    """How far the parts, summed over the ranks, are from the separate documents."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    expected = backward(model, separately(model))
    model.set_attn_implementation("varlen")
    found = {}
    for kind in ("packed", "joined"):
        got = backward(model, by_parts(model, group, kind))
        for tensor in got:
            dist.all_reduce(tensor)
        off = [(a - b).abs().max().item() for a, b in zip(got, expected, strict=True)]
        found |= {f"{kind} loss": off[0] / expected[0].item(), f"{kind} gradients": max(off[1:])}
    return found


def not_exchanged(*args: Any, sp_group: Any = None, **kwargs: Any) -> Any:
    """As in a model that does not hand its arguments on."""
    return varlen.varlen_forward(*args, **kwargs)


def joined(*args: Any, sp_group: Any = None, cu_seq_lens_q: Any = None, **kwargs: Any) -> Any:
    """Documents see each other where rows are cut, and only there."""
    ends = cu_seq_lens_q if sp_group is None else cu_seq_lens_q[[0, -1]]
    return varlen.varlen_forward(*args, sp_group=sp_group, cu_seq_lens_q=ends, **{**kwargs, "max_length_q": None})


def proofs(config: Any, group: Any) -> dict[str, str]:
    """What the start-up proof says: isolated, or why not."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="varlen")
    add_fused_lm_head(model)
    ids, said = torch.randint(0, 257, (isolation.TOKENS,)).tolist(), {}
    for attention in (varlen.varlen_forward, not_exchanged, joined):
        name = attention.__name__
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, varlen.varlen_mask)
        model.set_attn_implementation(name)
        try:
            said[name] = isolation.check(model, ids, torch.device("cpu"), torch.float32, group)
        except ValueError as error:
            said[name] = str(error)
    return said


def main(words: list[str]) -> int:
    """All cases of this world, into OUT.json."""
    varlen.register()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    group = sequence_parallel.join(ranks, timedelta(seconds=60))
    cases = {f"{name}, {ranks}": config for name, (config, worlds) in configs().items() if ranks in worlds}
    found: dict[str, Any] = {name: compare(config, group) for name, config in cases.items()}
    if ranks == 2:
        found["proof"] = proofs(configs()["llama 3"][0], group)
    if dist.get_rank() == 0:
        Path(words[0]).write_text(json.dumps(found))
    dist.barrier()
    return 0
