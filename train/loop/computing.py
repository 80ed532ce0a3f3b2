"""How the trainer computes: with bf16 copies of the weights, keeping logits, each module's mode set once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import Trainer

from train.model import bf16_copies, kept_logits, training_mode


class Computing(Trainer):
    """Forward and backward passes as the run config asks for them."""

    copies: bf16_copies.Bf16Copies | None = None
    keep_logits_gib: float = 0.0

    def compute_as(self, *, copies: bool, keep_logits_gib: float) -> None:
        """Before anything is prepared.

        Raises:
            ValueError: copies are asked for where they cannot be right.
        """
        self.keep_logits_gib = keep_logits_gib
        if self.accelerator.state.dynamo_plugin.backend.value == "NO":
            model: Any = self.model
            training_mode.remember(model)
        if copies:
            self.copies = bf16_copies.make(self)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What the model computes in here, it computes as training does."""
        with self.copies.in_place() if self.copies else nullcontext(), kept_logits.keeping(self.keep_logits_gib):
            yield

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward of a micro-batch; after the last one of a step the optimizer changes the weights."""
        with self.computing():
            loss = super().training_step(*args, **kwargs)
        if self.copies and self.accelerator.sync_gradients:
            self.copies.outdate()
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """With the weights that training computes with."""
        with self.computing():
            return super().evaluate(*args, **kwargs)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.copies:
            self.copies.outdate()
