"""Ranges of the options that are numbers: where another value trains nothing, trains wrongly, or fails only later.

The libraries take `max_steps: 0`, `label_smoothing_factor: 2` or a negative learning rate without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Range:
    """From `least` to `most`, both included unless said."""

    least: float = -math.inf
    most: float = math.inf
    without_least: bool = False
    without_most: bool = False
    also: tuple[float, ...] = ()  # single values that are allowed besides
    share: bool = False  # below 1 it is a share of all steps, from 1 on a whole number
    instead: str = ""  # what to write where a value outside was meant

    def holds(self, value: float) -> bool:
        """Whether the value lies in it."""
        if value in self.also:
            return True
        if self.share and value > 1 and value != int(value):
            return False
        above = value > self.least if self.without_least else value >= self.least
        below = value < self.most if self.without_most else value <= self.most
        return above and below

    def describe(self) -> str:
        """In words, such as "0 or more and below 1"."""
        parts = []
        if self.least > -math.inf:
            parts.append(f"above {self.least:g}" if self.without_least else f"{self.least:g} or more")
        if self.most < math.inf:
            parts.append(f"below {self.most:g}" if self.without_most else f"at most {self.most:g}")
        if self.share:
            parts.append("whole where it is 1 or more")
        return " and ".join(parts)


_COUNT = Range(least=1)
_NOT_NEGATIVE = Range(least=0)
_STEPS = Range(least=0, without_least=True, share=True)
_FRACTION = Range(least=0, most=1, without_most=True)
_SEED = Range(least=0, most=2**32 - 1)  # numpy takes no other

RANGES: dict[str, Range] = {
    # How long and how much
    "max_steps": Range(least=1, also=(-1,), instead="leave it out, or write -1, to train num_train_epochs"),
    "num_train_epochs": Range(least=0, without_least=True),
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "warmup_steps": Range(least=0, share=True),
    # The update
    "learning_rate": Range(least=0, most=1, without_least=True),
    "weight_decay": Range(least=0, most=1),
    "adam_beta1": _FRACTION,
    "adam_beta2": _FRACTION,
    "adam_epsilon": Range(least=0, most=1, without_least=True, without_most=True),
    "max_grad_norm": Range(least=0, instead="write 0 to clip nothing"),
    "label_smoothing_factor": _FRACTION,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "router_aux_loss_coef": _NOT_NEGATIVE,
    "lora_r": _COUNT,
    "lora_alpha": Range(least=0, without_least=True),
    "lora_dropout": _FRACTION,
    "seed": _SEED,
    "data_seed": _SEED,
    # When
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "eval_delay": _NOT_NEGATIVE,
    "save_steps": _STEPS,
    "save_total_limit": Range(least=1, instead="leave it out to keep all checkpoints"),
    "torch_empty_cache_steps": _COUNT,
    # The machinery
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    "pad_to_multiple_of": _COUNT,
    # Ours
    "expected_world_size": _COUNT,
    "sequence_parallel": _COUNT,
    "spike_sigma": Range(least=0, without_least=True),
    "sample_prompts": _NOT_NEGATIVE,
    "sample_max_new_tokens": _COUNT,
    "keep_logits_gib": _NOT_NEGATIVE,
    "early_stopping_patience": _COUNT,
    "early_stopping_threshold": _NOT_NEGATIVE,
}


def values_out_of_range(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, what is wrong) for each number outside its option's range."""
    for name, value in values.items():
        allowed = RANGES.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if allowed and is_number and not allowed.holds(value):
            instead = f": {allowed.instead}" if allowed.instead else ""
            yield name, f"expected {allowed.describe()}, found {value}{instead}"
