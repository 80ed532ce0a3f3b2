"""Start-up proof, on the real model, that packed documents do not see each other.

Three short documents run packed, then each by itself, then as one document. Isolated, packed equals separate up to
rounding, in the log-probabilities and in the gradients of the embeddings. What would leak is known: the difference that
one document of all three makes. A model whose packed documents differ from the separate ones by more than a small part
of that is not trained. It takes five short passes, in the engine and precision of training, on all processes together
(ZeRO-3 and FSDP gather weights as in any other). Where training cuts rows into parts, so does the packed pass, within a
document; the separate documents stay whole.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from data_prep.shards import IGNORE_INDEX
from train.model import document_kernels, sequence_parallel
from train.model.compiling import eagerly
from train.run.distributed import gather_problems

log = logging.getLogger(__name__)

TOKENS = 144  # of the three documents together
# The largest allowed difference, as a part of what no isolation would make: in fp32 of the worst token, in half
# precision on average, since rounding may send single tokens to other experts. Random models of six architectures on a
# CPU stay below 1e-5 and 0.005; one layer of two that mixes gives more than 0.5.
LARGEST = {torch.float32: 0.001, torch.float16: 0.2, torch.bfloat16: 0.2}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Distances between the log-probabilities of the same tokens, and between the gradients of their embeddings, as
    parts of what no isolation would make."""

    worst: float  # of the token that differs most
    mean: float  # of the document that differs most
    worst_gradient: float
    mean_gradient: float

    def of(self, dtype: torch.dtype) -> float:
        """0: isolated; about 1: not isolated."""
        if dtype == torch.float32:
            return max(self.worst, self.worst_gradient)
        return max(self.mean, self.mean_gradient)


def make_callback(trainer: Any) -> TrainerCallback:
    """A callback that refuses to begin training unless packed documents are isolated.

    Args:
        trainer: over packed rows; its first rows give the documents.
    """

    class CheckIsolation(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Where weights are cut into parts, as training calls it. ZeRO-1 and 2 would take this backward pass for
            # one of training, and reduce gradients that there are not.
            sharded = is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled
            model = trainer.model_wrapped if sharded else trainer.model
            ids = first_tokens(trainer.train_dataset, TOKENS)

            def prove() -> str:
                return check(model, ids, args.device, training_dtype(args), trainer.row_group)

            with eagerly(trainer.accelerator.state.dynamo_plugin), trainer.computing():
                for line in document_kernels.choose(trainer.model, prove):
                    log.info(f"layers that carry a state: {line}")
                found = prove()
            parts = sequence_parallel.part_of(trainer.row_group).size
            cut = f", cut into {parts} parts" if parts > 1 else ""
            log.info(f"packed documents are isolated{cut}: {found}")

    return CheckIsolation()


def training_dtype(args: TrainingArguments) -> torch.dtype:
    """The precision of the arithmetic in training."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else torch.float32


def first_tokens(rows: Any, count: int) -> list[int]:
    """The first tokens of the rows, at most `count`."""
    ids: list[int] = []
    for i in range(len(rows)):
        ids += list(rows[i]["input_ids"])
        if len(ids) >= count:
            break
    return ids[:count]


def check(
    model: Any,
    ids: list[int],
    device: torch.device,
    dtype: torch.dtype,
    group: torch.distributed.ProcessGroup | None = None,
) -> str:
    """Refuse a model that mixes packed documents. Every process must call it.

    Args:
        group: the ranks that hold parts of the same rows; None: rows are whole.

    Returns:
        A line that says how small the difference is.

    Raises:
        ValueError: packed documents get other logits than separate ones.
    """
    if len(ids) < 6:
        return "not checked, since there are fewer than 6 tokens"
    if dtype == torch.float32:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    documents = split(ids)
    found, largest = measure(model, documents, device, group).of(dtype), LARGEST.get(dtype, LARGEST[torch.bfloat16])
    text = f"they differ from separate ones by {found:.1e} of what no isolation would make (limit {largest} in {dtype})"
    # A NaN is refused as well.
    if problems := gather_problems([] if found <= largest else [text]):
        cause = _cause(model, documents, device, dtype, group)
        raise ValueError(
            f"this model does not keep packed documents apart, as {cause}: {problems[0]}. Training it on packed rows "
            "would be wrong: choose another attn_implementation (sdpa and eager are the plainest), or another model"
        )
    return text


def _cause(model: Any, documents: list[list[int]], device: torch.device, dtype: torch.dtype, group: Any) -> str:
    """Of what was found: what changes a token's log-probability that must not."""
    allowed = 1e-4 if dtype == torch.float32 else 0.1  # by rounding
    whole, _ = _pass(model, [documents[1]], device)
    begun, _ = _pass(model, [documents[1][:-2]], device)
    if not torch.allclose(whole[: len(begun)], begun, rtol=0, atol=allowed):
        return "tokens see those that follow"
    others = documents[1][: len(documents[0])]
    packed, changed = (_pass(model, [first, *documents[1:]], device, group)[0] for first in (documents[0], others))
    later = slice(len(documents[0]), None)
    if not torch.allclose(packed[later], changed[later], rtol=0, atol=allowed):
        return "documents see those before them"
    return "a document is computed by its place in the row"


def split(ids: list[int]) -> list[list[int]]:
    """Three documents of different lengths, at odd places: what works by blocks of tokens would else find its own."""
    first, second = len(ids) * 47 // TOKENS, len(ids) * 113 // TOKENS
    return [ids[:first], ids[first:second], ids[second:]]


def measure(
    model: Any,
    documents: list[list[int]],
    device: torch.device,
    group: torch.distributed.ProcessGroup | None = None,
) -> Difference:
    """How far the tokens' log-probabilities in packed documents are from those in separate ones.

    Args:
        model: with TRL's fused LM head, as in training: under ZeRO-3 every forward pass must call the same modules.
    """
    was_training = model.training
    model.eval()
    packed, packed_gradients = _pass(model, documents, device, group)
    joined, joined_gradients = _pass(model, [list(chain(*documents))], device)
    each = [_pass(model, [document], device) for document in documents]
    alone, gradients = (torch.cat(parts) for parts in zip(*each, strict=True))
    model.train(was_training)
    lengths = [len(document) for document in documents]
    ends = torch.tensor(lengths).cumsum(0)[:-1] - 1  # where `joined` guesses the first token of the next document
    inside = torch.ones_like(joined, dtype=torch.bool).index_fill(0, ends.to(device), False)
    short = [n - 1 for n in lengths]
    worst, mean = _compare(packed[inside], alone, joined[inside], short, lengths[0] - 1)
    worst_gradient, mean_gradient = _compare(packed_gradients, gradients, joined_gradients, lengths, 0)
    return Difference(worst=worst, mean=mean, worst_gradient=worst_gradient, mean_gradient=mean_gradient)


def _compare(
    packed: torch.Tensor, alone: torch.Tensor, joined: torch.Tensor, lengths: list[int], first: int
) -> tuple[float, float]:
    """How far `packed` is from `alone`, at worst and on average, as parts of how far `joined` is on average.

    Args:
        first: where the first document that could be different begins.
    """
    leak = (joined - alone)[first:].abs().mean().item()
    different = (packed - alone).abs()
    mean = max(part.mean().item() for part in different.split(lengths))
    return _part(different.max().item(), leak), _part(mean, leak)


def _part(difference: float, leak: float) -> float:
    return difference / leak if leak else float(difference != 0)


def _pass(
    model: Any,
    documents: list[list[int]],
    device: torch.device,
    group: torch.distributed.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one row that holds the documents: log-probabilities, (tokens - 1,), 0 for the first token of each; and for
    each token the size of the gradient of its embedding, (tokens,). Both fp32. No weight gets a gradient. With a group,
    each rank computes its part of the row, and gets all."""
    tokens = sum(len(document) for document in documents)
    embeddings: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        embeddings[:] = [output if output.requires_grad else output.detach().requires_grad_()]
        return embeddings[0]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            log_probs = _log_probs(model, documents, device, group)
            (gradient,) = torch.autograd.grad(log_probs.sum(), embeddings)
    finally:
        handle.remove()
    parts = (log_probs.detach(), gradient[0].float().norm(dim=-1))
    whole_log_probs, sizes = (sequence_parallel.gather_tokens(part, group) for part in parts)
    return whole_log_probs[: tokens - 1], sizes[:tokens]


def _log_probs(
    model: Any, documents: list[list[int]], device: torch.device, group: torch.distributed.ProcessGroup | None
) -> torch.Tensor:
    """(tokens - 1,) fp32 of one row that holds the documents, or of a part of it; 0 for the first token of each."""
    part = sequence_parallel.part_of(group)
    filler = [documents[0][:1]] * (-sum(map(len, documents)) % part.size)  # documents of one token fill the row up
    row = _row([*documents, *filler], device)
    if group is not None:
        row = sequence_parallel.cut(row, part)
    outputs = model(**row, **sequence_parallel.arguments(group), use_cache=False, fused_lm_head=True)
    return outputs.log_probs[0].float()


def _row(documents: list[list[int]], device: torch.device) -> dict[str, Any]:
    """A batch of one packed row, every token trained."""
    lengths = torch.tensor([len(document) for document in documents])
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])[None].to(device)
    ids, longest = torch.tensor([list(chain(*documents))], device=device), int(lengths.max())
    numbers = torch.repeat_interleave(torch.arange(len(documents), dtype=torch.int32), lengths)[None].to(device)
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(positions == 0, IGNORE_INDEX),
        "position_ids": positions,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": numbers,
    }
