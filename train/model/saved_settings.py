"""What is saved next to a model's weights, its configuration and its generation defaults: found out before training."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

log = logging.getLogger(__name__)

_NAMED = re.compile(r"^- `(\w+)`", re.MULTILINE)  # in what transformers says


def make_savable(model: Any) -> None:
    """Mend generation defaults that transformers loads but refuses to save, and save both files once, to nowhere.

    Published models have such defaults: Llama 2's give a temperature without `do_sample`. Once training has put the
    tokenizer's tokens into them, every checkpoint and the final model would fail. Adapters are saved without them.

    Raises:
        ValueError: the configuration cannot be saved.
    """
    has_adapters = hasattr(model, "get_base_model")
    whole = model.get_base_model() if has_adapters else model
    if not has_adapters and (change := _mend(getattr(whole, "generation_config", None))):
        log.info(f"transformers would not save generation_config.json of the model: {change}")
    with TemporaryDirectory() as folder:
        _rehearse(whole, Path(folder))


def _mend(config: Any) -> str | None:
    """What is changed about the generation defaults, in words."""
    problem = config and _problem(config)
    if not problem:
        return None
    names, before, config.do_sample = _NAMED.findall(problem), config.do_sample, True
    if not _problem(config):  # what a temperature without it is meant for
        return f"it has {', '.join(names)} without do_sample. do_sample is now true"
    config.do_sample = before
    for name in names:
        setattr(config, name, None)
    return f"it has {', '.join(names)}, which do nothing there. They are left out"


def _problem(config: Any) -> str | None:
    """Why transformers would not save it once it has been changed."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None


def _rehearse(model: Any, folder: Path) -> None:
    try:
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None):
            model.generation_config.save_pretrained(folder)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{model.config.name_or_path}: no checkpoint could be saved, because its settings cannot be: {error}. "
            "Train from a copy in which config.json and generation_config.json are mended"
        ) from None
