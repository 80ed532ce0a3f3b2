"""Proof, at the start, that TRL's fused head computes the model's own loss.

TRL takes the weight of the output embeddings, a bias, a scale and a soft cap. A model whose head has more, such as a
layer before the output embeddings (ModernBERT's decoder) or a cap under another name (RecurrentGemma), would be trained
on other log-probabilities than it has. The head alone is compared, on random hidden states: the layers do not run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutput

from train.run.distributed import gather_problems

log = logging.getLogger(__name__)

TOKENS = 16
LIMIT = 0.05  # of the log-probabilities' spread, on average: bf16 rounds to under 0.01
_SPREAD = 10.0  # of the logits, so that a cap would show


def check(model: Any) -> None:
    """Refuse a model whose own log-probabilities are not those of TRL's fused head. Every process must call it.

    Args:
        model: with TRL's fused head, or a PEFT model around one; before an engine wraps it.

    Raises:
        ValueError: they differ.
    """
    found = difference(model.get_base_model() if hasattr(model, "get_base_model") else model)
    if found is None:
        log.info("the model's own loss head is not compared with TRL's: its code calls its layers in another way")
    wrong = found is not None and not found <= LIMIT
    text = f"they differ from TRL's fused head by {found:.1e} of their spread (limit {LIMIT})" if wrong else ""
    if problems := gather_problems([text] if text else []):
        raise ValueError(
            f"the model's own log-probabilities are not those that would be trained, as its head does more than "
            f"multiply by the output embeddings: {problems[0]}: choose another model"
        )


def difference(model: Any) -> float | None:
    """How far the two are apart, as a part of the log-probabilities' spread; None where it cannot be seen: the weights
    are elsewhere, or the model does not run its backbone as TRL does."""
    backbone = model.base_model
    inside = {id(weight) for weight in backbone.parameters()}
    head = model.get_output_embeddings()
    if head is None or backbone is model:
        return None
    weights = [weight for weight in model.parameters() if id(weight) not in inside] + [head.weight]
    if any(weight.is_meta for weight in weights):
        return None
    with torch.no_grad(), _gathered(weights):
        hidden = _hidden_states(head.weight)
        return _compare(model, backbone, hidden)


def _compare(model: Any, backbone: Any, hidden: torch.Tensor) -> float | None:
    ids = torch.arange(4, 4 + TOKENS, device=hidden.device)[None]
    try:
        with _returning(backbone, hidden) as calls:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            fused = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True).log_probs[0]
    except Exception:  # its forward pass wants more of the backbone than hidden states
        return None
    if len(calls) != 2:
        return None
    own = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return ((fused - own).abs().mean() / (own - own.mean()).abs().mean()).item()


def _gathered(weights: list[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    """Weights that ZeRO-3 has cut into parts, whole."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights)


def _hidden_states(weight: torch.Tensor) -> torch.Tensor:
    """(1, tokens, width) that give logits of a known spread; the same on every process."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, TOKENS, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
    logits = states @ weight[:1024].T
    return states * (_SPREAD / logits.float().std().clamp(min=1e-6)).to(weight.dtype)


class _OnlyHiddenStates(BaseModelOutput):
    """A backbone's output whose other parts, such as router logits, are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _returning(backbone: Any, hidden: torch.Tensor) -> Iterator[list[None]]:
    """The backbone returns these hidden states, without running; yields a list with an entry for each call."""
    calls: list[None] = []
    own = backbone.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> _OnlyHiddenStates:
        calls.append(None)
        return _OnlyHiddenStates(last_hidden_state=hidden)

    backbone.forward = forward
    try:
        yield calls
    finally:
        del backbone.forward
        if own is not None:
            backbone.forward = own
