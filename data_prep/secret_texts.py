"""Texts that look like secrets: tokens of hubs and services, keys of clouds, a password in an address.

Recipes and run configs are written into manifests, run.json and W&B. So a secret in them is refused, and no message
shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "(hidden)"
_FORMS = re.compile(
    r"\b(?:hf_|api_org_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abeprs]-|wandb_v1_)[\w-]{10,}"  # hubs and services
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}"  # clouds
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web token
    r"|(?<=://)[^\s/:@'\"]*:[^\s/@'\"]+(?=@)"  # user:password@host
)


def secrets_in(value: Any) -> Iterator[str]:
    """Those in a text, or in the texts of a list or mapping, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from secrets_in(inner)
    elif isinstance(value, str):
        yield from (match.group() for match in _FORMS.finditer(value))


def hide(text: str) -> str:
    """The text without what looks like a secret."""
    return _FORMS.sub(HIDDEN, text)
