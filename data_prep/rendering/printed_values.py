"""What a template prints of tool calls and tools, compared with what they hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data_prep.conversation import ToolCall

# How templates order the keys of an object: as they come, as JSON's sort_keys does, as Jinja's dictsort does.
_ORDERS: tuple[Callable[[Iterable[str]], list[str]], ...] = (list, sorted, lambda keys: sorted(keys, key=str.lower))


def spellings(text: str) -> Iterator[str]:
    """A text as it is, as JSON writes it, and as Python does."""
    yield text
    for ascii_only in (False, True):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1]
    yield repr(text)[1:-1]
    yield repr(text + '"')[1:-2]  # between single quotes


class Cursor:
    """Finds texts in a rendering, each after the one before."""

    def __init__(self, text: str, at: int = 0):
        self.text, self.at = text, at

    def passes(self, wanted: str | re.Pattern[str]) -> bool:
        """Whether it is there, in one of its spellings; then the cursor stands behind it."""
        if isinstance(wanted, re.Pattern):
            if found := wanted.search(self.text, self.at):
                self.at = found.end()
            return found is not None
        for spelling in spellings(wanted):
            start = self.text.find(spelling, self.at)
            if start >= 0:
                self.at = start + len(spelling)
                return True
        return False


def first_missing_call(calls: Sequence[ToolCall], text: str, at: int) -> int | None:
    """Which call is not printed with its name and all its arguments, in the calls' order; None if all are.

    Args:
        text: an answer.
        at: where its content ends; some templates print that after the calls.
    """
    best = 0
    for start in dict.fromkeys((at, 0)):
        for order in _ORDERS:
            for is_name_first in (True, False):
                best = max(best, _num_printed(calls, Cursor(text, start), order, is_name_first))
                if best == len(calls):
                    return None
    return best


def _num_printed(calls: Sequence[ToolCall], cursor: Cursor, order: Callable[..., list[str]], name_first: bool) -> int:
    for number, call in enumerate(calls):
        arguments = _leaves(call.arguments, order)
        wanted = [call.name, *arguments] if name_first else [*arguments, call.name]
        if not all(map(cursor.passes, wanted)):
            return number
    return len(calls)


def _leaves(value: Any, order: Callable[..., list[str]]) -> Iterator[str | re.Pattern[str]]:
    """The keys and the scalars in a JSON value, each as a template may spell it."""
    if isinstance(value, dict):
        for key in order(value):
            yield key
            yield from _leaves(value[key], order)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, order)
    elif isinstance(value, str):
        yield value
    else:
        yield _word({json.dumps(value), str(value)})


def _word(texts: Iterable[str]) -> re.Pattern[str]:
    """One of some numbers or words, not as a part of a longer one."""
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, sorted(texts)))})(?!\w|\.\d)")


def printed_as_python(calls: Sequence[ToolCall], text: str, said: str) -> Any:
    """An object or list in the calls' arguments that is printed as Python writes it, and not as JSON; or None. Where
    calls are written in Python, as `look_up(words=['a'])`, all is as it should be.

    Args:
        text: the answers.
        said: their contents and reasoning, which may quote such objects.
    """
    for call in calls:
        if f"{call.name}(" not in text:
            for value in _containers(call.arguments):
                written = str(value)
                if text.count(written) > said.count(written) and not _is_json(written):
                    return value
    return None


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class ToolTexts:
    """The texts in the schemas of tools that a rendering lacks: printed less often than the schemas hold them.

    Args:
        tools: the schemas.
        text: the rendering without the answers.
    """

    def __init__(self, tools: Sequence[dict[str, Any]], text: str):
        rest, self._text = _without_json(tools, text)
        # What any template of tools prints; types and what is required are often put into other words.
        self.missing = self._missing(t for tool in rest for t in _names_and_descriptions(tool))
        # What some published templates leave out.
        self.left_out = self._missing(t for tool in rest for t in _details(tool.get("parameters"), depth=0))

    def _missing(self, texts: Iterable[Any]) -> list[str]:
        wanted = Counter(text.strip() for text in texts if isinstance(text, str))
        return [one for one, number in wanted.items() if max(map(self._text.count, spellings(one))) < number]


def _without_json(tools: Sequence[dict[str, Any]], text: str) -> tuple[list[dict[str, Any]], str]:
    """The functions of the tools that are not printed in order as JSON, and the text without those that are."""
    rest, kept, at = [], [], 0
    for tool in tools:
        written = json.dumps(tool, ensure_ascii=False)
        start = text.find(written, at)
        if start < 0:
            rest.append(tool.get("function") or tool)
        else:
            kept.append(text[at:start])
            at = start + len(written)
    return rest, "\n".join([*kept, text[at:]]) if rest else ""


def _names_and_descriptions(function: dict[str, Any]) -> Iterator[Any]:
    yield function.get("name")
    yield function.get("description")
    for name, schema in properties(function.get("parameters")):
        yield name
        yield schema.get("description") if isinstance(schema, dict) else None


def _details(schema: Any, depth: int) -> Iterator[Any]:
    """Names and descriptions below the parameters themselves, and the values that a parameter may have."""
    if isinstance(schema, list):
        for item in schema:
            yield from _details(item, depth)
    if not isinstance(schema, dict):
        return
    if depth > 1:
        yield schema.get("description")
    yield from schema["enum"] if isinstance(schema.get("enum"), list) else ()
    for name, inner in properties(schema):
        if depth:
            yield name
        yield from _details(inner, depth + 1)
    for key in ("items", "anyOf", "oneOf", "allOf"):
        yield from _details(schema.get(key), depth + 1)


def properties(schema: Any) -> list[tuple[str, Any]]:
    """The parameters in a schema, and the schema of each."""
    inner = schema.get("properties") if isinstance(schema, dict) else None
    return list(inner.items()) if isinstance(inner, dict) else []
