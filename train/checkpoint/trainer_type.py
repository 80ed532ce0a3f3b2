"""What checkpoints need of a trainer and of its counters; for type checks only."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerState
from trl import SFTConfig


class Counter(Protocol):
    """Something that counts, and goes on counting after a resume."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint's marker keeps of it, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up such a state; an empty one if the checkpoint has none."""


class Guard(Counter, Protocol):
    """The guard against bad steps; see train.loop.bad_steps."""

    asked_at: float | None  # when the processes last asked each other for signals, by time.perf_counter


class CheckpointedTrainer(Protocol):
    """TRL's SFTTrainer, as far as checkpoints go, and the guard.

    What belongs to torch, DeepSpeed or the model is Any: its class depends on the launch.
    """

    args: SFTConfig
    state: TrainerState
    accelerator: Accelerator
    model: Any
    optimizer: Any
    lr_scheduler: Any
    deepspeed: Any  # its engine; None without DeepSpeed and before training
    is_deepspeed_enabled: bool
    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int
    _total_train_tokens: Any  # number, or tensor of one

    @property
    def guard(self) -> Guard:
        """Which gives each step's time of asking for signals."""

    @property
    def _metrics(self) -> Mapping[str, MutableMapping[str, list[float]]]:
        """Values since the last line of the log, by "train" or "eval" and by name."""

    def add_callback(self, callback: TrainerCallback) -> None:
        """Let it hear of the training's events."""

    def save_model(self, output_dir: str | None = None) -> None:
        """Write the model, without optimizer states."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write config, tokenizer and `state_dict`; without one, the model's own weights."""

    def push_to_hub(self, commit_message: str | None, *, revision: str | None) -> Any:
        """Upload the run directory to the hub."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint to the hub."""
