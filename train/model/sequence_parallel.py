"""Sequence parallelism: a group of ranks holds a packed row in parts, and shares the heads of its attention.

Every layer but attention computes token by token, so a part needs nothing of the others. Around attention, tokens are
exchanged for heads (Ulysses; Jacobs et al., 2023): each rank then has all tokens of the row and its share of the heads.
The ends of the documents are those of the whole row on every rank, so attention keeps documents apart as it always
does, also where a part ends within one.

Labels are shifted before the row is cut, since the last token of a part is trained on the first one of the next. Each
rank's loss is the sum over its part divided by the trained tokens of all, so no engine has to know of the parts.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import TrainerCallback

from data_prep.shards import IGNORE_INDEX

_CUT = ("input_ids", "position_ids", "shift_labels", "seq_idx")  # of a batch; what describes the row stays whole


@dataclass(frozen=True)
class Part:
    """Which part of each row a rank holds: number `index` of `size`, all of one length."""

    index: int = 0
    size: int = 1

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """(1, tokens) -> (1, tokens / size)."""
        return whole.chunk(self.size, dim=1)[self.index]


def join(size: int, timeout: timedelta) -> dist.ProcessGroup | None:
    """The group of `size` consecutive ranks that this rank belongs to; None for 1. Every rank must call it.

    Args:
        timeout: of the group's operations: torch does not take that of the world.

    Raises:
        ValueError: the ranks cannot be divided into such groups.
    """
    if size == 1:
        return None
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world % size:
        raise ValueError(f"sequence_parallel: expected a number that divides the world size {world}, found {size}")
    groups = [dist.new_group(list(range(first, first + size)), timeout=timeout) for first in range(0, world, size)]
    return groups[dist.get_rank() // size]


def part_of(group: dist.ProcessGroup | None) -> Part:
    """This rank's part; the whole row without a group."""
    return Part(group.rank(), group.size()) if group is not None else Part()


def arguments(group: dist.ProcessGroup | None) -> dict[str, Any]:
    """What the model is called with, next to a batch that was cut. As an argument, unlike a global, it is there again
    when gradient checkpointing computes a layer a second time."""
    return {"sp_group": group} if group is not None else {}


def cut(batch: dict[str, Any], part: Part) -> dict[str, Any]:
    """A rank's part of a batch of TRL's padding-free collator.

    Args:
        batch: with `labels`, (1, tokens) int64; the tokens can be divided by `part.size`.

    Returns:
        input_ids, position_ids, seq_idx and shift_labels, each (1, tokens / size); `shift_labels` holds for each token
        the label of the next one, and `labels` is the same. All else is that of the whole row: cu_seq_lens_q/k,
        max_length_q/k.
    """
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    whole = {**batch, "shift_labels": shifted}
    parts = {name: part.of(whole[name]) for name in _CUT}
    return {**batch, **parts, "labels": parts["shift_labels"]}


class _Exchange(torch.autograd.Function):
    """(ranks, ...): block i goes to rank i, and comes from there. Gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchange(blocks, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchange(gradients[0], ctx.group), None


def _exchange(blocks: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks, group=group)
    return received


def heads_for_tokens(states: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(1, heads, tokens / n, width) -> (1, heads / n, tokens, width), a view of (tokens, heads / n, width)."""
    n, (_, heads, tokens, width) = group.size(), states.shape
    blocks = states[0].reshape(n, heads // n, tokens, width).transpose(1, 2)
    return _Exchange.apply(blocks, group).reshape(1, n * tokens, heads // n, width).transpose(1, 2)


def tokens_for_heads(states: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(1, tokens, heads / n, width) -> (1, tokens / n, heads, width)."""
    n, (_, tokens, heads, width) = group.size(), states.shape
    blocks = _Exchange.apply(states.reshape(n, tokens // n, heads, width), group)
    return blocks.transpose(0, 1).reshape(1, tokens // n, n * heads, width)


def exchanging(attention: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function of transformers that is given parts of a row as well: then with `sp_group`, and
    `cu_seq_lens_q` and `max_length_q` of the whole row."""

    @functools.wraps(attention)
    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sp_group: dist.ProcessGroup | None = None,
        **kwargs: Any,
    ) -> Any:
        if sp_group is None:
            return attention(module, query, key, value, attention_mask, **kwargs)
        if attention_mask is not None or kwargs.get("cu_seq_lens_q") is None:
            raise ValueError("sequence_parallel: expected a packed row with cu_seq_lens_q and without a mask")
        copies = _copies(query.shape[1], key.shape[1], sp_group.size())
        key, value = (x.repeat_interleave(copies, dim=1) if copies > 1 else x for x in (key, value))
        states = (heads_for_tokens(x, sp_group) for x in (query, key, value))
        out, weights = attention(module, *states, None, **{**kwargs, "position_ids": None})
        return tokens_for_heads(out, sp_group), weights

    return forward


def _copies(heads: int, kv_heads: int, ranks: int) -> int:
    """How often each head of keys and values is there, so that the ranks have equally many."""
    shared = math.lcm(kv_heads, ranks)
    if heads % shared:
        raise ValueError(
            f"sequence_parallel: {heads} heads with {kv_heads} of keys and values cannot be shared by {ranks} ranks"
        )
    return shared // kv_heads


def gather_tokens(own: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """(tokens / n,) -> (tokens,), without a gradient. Every rank of the group must call it."""
    if group is None:
        return own
    parts = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(parts, own.contiguous(), group=group)
    return torch.cat(parts)


def separate_random_numbers(group: dist.ProcessGroup | None, seed: int) -> None:
    """Let the parts of a row draw numbers of their own: dropout and noise would repeat in each part.

    Every rank must call it. Ranks that draw other numbers already are left as they are; those that began with one seed,
    or with the states of a run of whole rows, are not.
    """
    if group is None:
        return
    states: list[int] = [0] * group.size()
    dist.all_gather_object(states, zlib.crc32(torch.get_rng_state().numpy().tobytes()), group=group)
    if len(set(states)) < len(states):
        torch.manual_seed(seed + group.rank())


def make_callback(trainer: Any) -> TrainerCallback:
    """A callback that separates the random numbers of parts at the start; `RowParts` does so after a resume."""

    class SeparateRandomNumbers(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            separate_random_numbers(trainer.row_group, args.seed)

    return SeparateRandomNumbers()
