"""Start-up proof, on the real model, that packed documents do not see each other.

Three short documents run packed, then each by itself, then as one document. Isolated, packed equals separate up to
rounding. What would leak is known: the difference that one document of all three makes. A model whose packed documents
differ from the separate ones by more than a small part of that is not trained. It takes five short forward passes, in
the engine and precision of training, on all processes together (ZeRO-3 and FSDP gather weights as in any other).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from transformers import TrainerCallback

from train.trainer import all_reduce_max

TOKENS = 144  # of the three documents together
# The largest allowed difference, as a part of what no isolation would make: in fp32 of the worst token, in half
# precision on average, since rounding may send single tokens to other experts. Random models of six architectures on a
# CPU stay below 1e-5 and 0.005; one layer of two that mixes gives more than 0.5.
LARGEST = {torch.float32: 0.001, torch.float16: 0.2, torch.bfloat16: 0.2}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Distances between the log-probabilities of the same tokens, as parts of what no isolation would make."""

    worst: float  # of the token that differs most
    mean: float  # of the document that differs most

    def of(self, dtype: torch.dtype) -> float:
        """0: isolated; about 1: not isolated."""
        return self.worst if dtype == torch.float32 else self.mean


def make_callback(trainer: Any, log: Any) -> TrainerCallback:
    """A callback that refuses to begin training unless packed documents are isolated.

    Args:
        trainer: over packed rows; its first rows give the documents.
        log: takes the line that says how well they are.
    """

    class CheckIsolation(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
            # Without sharding the plain model: a compiled one would be compiled for these lengths.
            model = trainer.model_wrapped if sharded else trainer.model
            ids = first_tokens(trainer.train_dataset, TOKENS)
            log(f"packed documents are isolated: {check(model, ids, args.device, training_dtype(args))}")

    return CheckIsolation()


def training_dtype(args: Any) -> torch.dtype:
    """The precision of the arithmetic in training."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def first_tokens(rows: Any, count: int) -> list[int]:
    """The first tokens of the rows, at most `count`."""
    ids: list[int] = []
    for i in range(len(rows)):
        ids += list(rows[i]["input_ids"])
        if len(ids) >= count:
            break
    return ids[:count]


def check(model: Any, ids: list[int], device: torch.device, dtype: torch.dtype) -> str:
    """Refuse a model that mixes packed documents. Every process must call it.

    Returns:
        A line that says how small the difference is.

    Raises:
        ValueError: packed documents get other logits than separate ones.
    """
    if len(ids) < 6:
        return "not checked, since there are fewer than 6 tokens"
    if dtype == torch.float32:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    found, largest = measure(model, split(ids), device).of(dtype), LARGEST.get(dtype, LARGEST[torch.bfloat16])
    text = f"packed and separate differ by {found:.1e} of what they would unisolated (limit {largest} in {dtype})"
    if all_reduce_max(not found <= largest, device):  # a NaN is refused as well
        raise ValueError(
            f"this model does not keep packed documents apart: {text}. Training it on packed rows would be wrong: "
            "choose another attn_implementation (sdpa and eager are the plainest), or another model"
        )
    return text


def split(ids: list[int]) -> list[list[int]]:
    """Three documents of different lengths."""
    first, second = len(ids) // 3, len(ids) * 7 // 9
    return [ids[:first], ids[first:second], ids[second:]]


def measure(model: Any, documents: list[list[int]], device: torch.device) -> Difference:
    """How far the tokens' log-probabilities in packed documents are from those in separate ones.

    Args:
        model: with TRL's fused LM head, as in training: under ZeRO-3 every forward pass must call the same modules.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed = _log_probs(model, documents, device)
        joined = _log_probs(model, [list(chain(*documents))], device)
        alone = torch.cat([_log_probs(model, [document], device) for document in documents])
    model.train(was_training)
    lengths = [len(document) for document in documents]
    ends = torch.tensor(lengths).cumsum(0)[:-1] - 1  # where `joined` guesses the first token of the next document
    inside = torch.ones_like(joined, dtype=torch.bool).index_fill(0, ends.to(device), False)
    leak = (joined[inside] - alone)[lengths[0] - 1 :].abs().mean().item()
    different = (packed[inside] - alone).abs()
    mean = max(part.mean().item() for part in different.split([n - 1 for n in lengths]))
    return Difference(worst=_part(different.max().item(), leak), mean=_part(mean, leak))


def _part(difference: float, leak: float) -> float:
    return difference / leak if leak else float(difference != 0)


def _log_probs(model: Any, documents: list[list[int]], device: torch.device) -> torch.Tensor:
    """(tokens - 1,) fp32 of one row that holds the documents; 0 for the first token of each."""
    lengths = torch.tensor([len(document) for document in documents])
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])[None].to(device)
    ids, longest = torch.tensor([list(chain(*documents))], device=device), int(lengths.max())
    outputs = model(
        input_ids=ids,
        labels=ids.masked_fill(positions == 0, -100),
        position_ids=positions,
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=longest,
        max_length_k=longest,
        use_cache=False,
        fused_lm_head=True,
    )
    return outputs.log_probs[0].float()
