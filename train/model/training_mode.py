"""Spares `model.train()` its walk through all modules where they are in training mode already.

transformers' Trainer calls it for each micro-batch. With hundreds of modules it takes about a millisecond of the host's
time, in which a GPU may wait for work.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

_IS_ON = "_whole_model_trains"  # in the model's own dictionary


def remember(model: torch.nn.Module) -> None:
    """Let `train()` after `train()` do nothing. `eval()` of the whole model undoes it; nothing here sets single modules
    to another mode.

    Args:
        model: not compiled: a compiled one may be another object with the same modules.
    """
    walk = type(model).train

    def train(self: Any, mode: bool = True) -> Any:
        if mode and self.__dict__.get(_IS_ON):
            return self
        self.__dict__[_IS_ON] = False
        walk(self, mode)
        self.__dict__[_IS_ON] = mode
        return self

    model.train = MethodType(train, model)  # type: ignore[method-assign]
