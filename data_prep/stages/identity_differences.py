"""What differs between two identities of preparations, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# The parts of an identity, as in `Job.identity`, and what it means that one differs.
_PARTS = {
    "recipe": "another recipe",
    "inputs": "other input files",
    "quality": "other evaluation files, filter functions or transforms",
    "tokenizer": "another tokenizer",
    "chat_template_sha256": "another chat template",
    "work_format": "another version of packhaul",
}
_MOST = 10  # differences shown
_NAMES = ("name", "path", "dataset")  # by which the entries of lists are told
NOTHING = object()  # stands for a value that is not there


def describe_differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which parts differ, and below them, a line each, what differs in them.

    Args:
        made: an identity of which parts may be unknown.
    """
    differing = [key for key in _PARTS if key in made and made[key] != now[key]]
    unknown = [key for key in _PARTS if key not in made]
    heads = [_PARTS[key] for key in differing] or [f"one of these: {', '.join(_PARTS[key] for key in unknown)}"]
    lines = [str(found) for key in differing for found in differences(made[key], now[key], key)]
    more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    return "".join([" and ".join(heads), *(f"\n  {line}" for line in lines[:_MOST] + more)])


@dataclass(frozen=True)
class Difference:
    """One value that differs."""

    at: str  # the way to it, such as "recipe: sources: faq: take"
    made: Any  # NOTHING where it is not there
    now: Any
    is_order: bool = False  # the same values in another order

    def __str__(self) -> str:
        what = "in another order" if self.is_order else f"{_shown(self.made)}, now {_shown(self.now)}"
        return f"{self.at}: {what}"


def differences(made: Any, now: Any, at: str) -> Iterator[Difference]:
    """The innermost values that differ."""
    made, now = _by_name(made), _by_name(now)
    if isinstance(made, dict) and isinstance(now, dict):
        if made == now:
            yield Difference(at, list(made), list(now), is_order=True)
        for key in dict.fromkeys([*made, *now]):
            if made.get(key, NOTHING) != now.get(key, NOTHING):
                yield from differences(made.get(key, NOTHING), now.get(key, NOTHING), f"{at}: {key}")
        return
    yield Difference(at, made, now)


def _by_name(value: Any) -> Any:
    """A list of things that have names, by them."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return value
    key = next((name for name in _NAMES if value and all(name in item for item in value)), None)
    return value if key is None else {item[key]: item for item in value}


def _shown(value: Any) -> str:
    if value is NOTHING:
        return "not there"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
