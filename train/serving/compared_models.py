"""Several models that answer the same prompts, one after the other: memory holds one."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.serving.chat_model import ChatModel
    from train.serving.loaded_models import Loading


@dataclass(frozen=True)
class Asked:
    """A model that answers."""

    path: str
    label: str = ""  # before its answers, where there are several models


def asked_models(model: str | None, base_model: str | None, compare: list[str]) -> list[Asked]:
    """All models of a command line, in the order in which their answers are printed."""
    if compare:
        names = [Path(path).resolve().name for path in compare]
        is_clear = len(set(names)) == len(names)
        return [Asked(path, name if is_clear else path) for path, name in zip(compare, names, strict=True)]
    if base_model:
        return [Asked(base_model, "base"), Asked(str(model), "tuned")]
    return [Asked(str(model))]


def answer_in_turn(models: list[Asked], loading: Loading, answer: Callable[[ChatModel], list[Any]]) -> list[list[Any]]:
    """What `answer` gives for each model, which is loaded for it and dropped after it.

    A model without a chat template is asked through that of the first other one that has a template.
    """
    from train.serving.loaded_models import load

    found = []
    for asked in models:
        print(f"{asked.label}: loading {asked.path}", file=sys.stderr, flush=True)
        model = load(asked.path, loading)
        if not model.tokenizer.chat_template:
            _borrow_template(model, [other.path for other in models if other != asked])
        found.append(answer(model))
        del model
        _free()
    return found


def _borrow_template(model: ChatModel, others: list[str]) -> None:
    from train.serving.loaded_models import borrow_template, read_asking

    for other in others:
        asking = read_asking(other)
        if asking.tokenizer.chat_template:
            borrow_template(model, other, asking)
            print(f"{model.name} has no chat template: asked through that of {other}", file=sys.stderr)
            return


def _free() -> None:
    """Give the memory of a dropped model back before the next one is loaded."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
