"""Secrets among a run's options: refused, as options go into run.json and W&B, and never printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_prep import secret_texts
from data_prep.secret_texts import HIDDEN, secrets_in

_SECRETS = "token|secrets?|passwords?|passwd|credentials?|(api|access|private)_?keys?"
_NAME = re.compile(rf"(^|_)({_SECRETS})$", re.IGNORECASE)  # not `tokens`, which are counted
_LONG = 6  # characters: a shorter one may be a part of any word, and is hidden between quotes only
_TEXT_TOKENS = ("eos_token", "pad_token")  # of a tokenizer
_REMEDY = "set it in the environment (HF_TOKEN, WANDB_API_KEY), or log in: `hf auth login`, `wandb login`"


def named_secret(name: str) -> bool:
    """Whether an option's or a key's name says that its value is secret."""
    return name not in _TEXT_TOKENS and bool(_NAME.search(name))


def refused_secrets(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, why) for each option that holds a secret, at any depth."""
    for name, value in values.items():
        if value is not None and any(_secrets(name, value)):
            yield name, f"{HIDDEN} is refused: it looks like a secret, and options go into run.json and W&B: {_REMEDY}"


def hide(text: str, given: Iterable[tuple[str, Any]]) -> str:
    """A message without the secrets among the options given, and without anything that looks like one."""
    found = {secret for name, value in given for secret in _secrets(name, value)}
    for secret in sorted(found, key=len, reverse=True):
        text = text.replace(secret if len(secret) >= _LONG else repr(secret), HIDDEN)
    return secret_texts.hide(text)


def _secrets(name: str, value: Any) -> Iterator[str]:
    """The texts in a value that are secret by the name over them, or by their form."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(name if named_secret(name) else str(key), inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _secrets(name, inner)
    elif isinstance(value, str) and value:
        yield from [value] if named_secret(name) else secrets_in(value)
