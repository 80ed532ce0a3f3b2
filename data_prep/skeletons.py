"""What a chat template prints around the contents: found once for each order of roles, filled in for each row.

Jinja takes longer to render a short row than the tokenizer takes to encode it. Most templates print every content
once, as it is or trimmed, whatever it says. A built-in template that does so declares it in its head (a test holds it
to that, on any contents):

    {#- contents: placed -#}     or     {#- contents: placed, unless </think> -#}

For such a template the roles alone decide what stands around the contents. Any other template is rendered by Jinja.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.chat_templates import ChatTemplate
from data_prep.conversation import Message

Span = tuple[int, int]
Apply = Callable[[list[dict[str, Any]]], "tuple[str, list[Span]]"]  # messages -> the text and its marked spans
_MOST = 4096  # orders of roles that are kept: long dialogues rarely have one in common
_PRIVATE = 0xF0000  # characters assigned to nobody
_BEFORE, _AFTER = "\u2005", "\u2006"  # kinds of space that no template prints itself


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a template prints for one order of roles."""

    literals: tuple[str, ...]  # before, between and after the contents
    is_trimmed: tuple[bool, ...]  # per content
    marks: tuple[tuple[int, int, int, int], ...]  # of each span: start's literal, offset in it, end's literal, offset

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]]:
        """The rendered text and its marked spans, in characters."""
        pieces, starts, length = [self.literals[0]], [0], len(self.literals[0])  # where each literal starts
        for content, is_trimmed, literal in zip(contents, self.is_trimmed, self.literals[1:], strict=True):
            text = content.strip() if is_trimmed else content
            pieces += text, literal
            length += len(text)
            starts.append(length)
            length += len(literal)
        return "".join(pieces), [(starts[a] + start, starts[b] + end) for a, start, b, end in self.marks]


class Skeletons:
    """The skeletons of one template, made as they are needed.

    Args:
        template: a template.
        apply: renders messages with it.
    """

    def __init__(self, template: ChatTemplate, apply: Apply):
        self._is_placed, self._unless = template.is_placed, template.unless
        self._apply = apply
        self._by_roles: dict[tuple[str, ...], Skeleton | None] = {}

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span]] | None:
        """The rendered text and its marked spans, or None where the template itself has to be rendered."""
        if not self._is_placed:
            return None
        for message in messages:
            if message.tool_calls or message.reasoning is not None:
                return None
            if self._unless and self._unless in message.content:
                return None
        contents, roles = [m.content for m in messages], tuple([m.role for m in messages])
        if roles not in self._by_roles:
            if len(self._by_roles) >= _MOST:
                return None
            self._by_roles[roles] = self._make(roles)
        skeleton = self._by_roles[roles]
        return skeleton.fill(contents) if skeleton else None

    def _make(self, roles: tuple[str, ...]) -> Skeleton | None:
        signs = [chr(_PRIVATE + i) for i in range(len(roles))]
        wanted = frozenset(signs)
        turns = [{"role": role, "content": f"{_BEFORE}{sign}{_AFTER}"} for role, sign in zip(roles, signs, strict=True)]
        text, spans = self._apply(turns)
        places = [(character, at) for at, character in enumerate(text) if character in wanted]
        if len(places) != len(signs) or len(dict(places)) != len(signs):
            return None
        return _cut(text, spans, signs, dict(places))


def _cut(text: str, spans: list[Span], signs: list[str], places: dict[str, int]) -> Skeleton | None:
    """Cut the contents out of a rendering in which each is a sign, at its place, between two kinds of space."""
    literals, starts, is_trimmed, done = [], [0], [], 0
    for sign in signs:
        at = places[sign]
        whole = text[at - 1 : at + 2] == f"{_BEFORE}{sign}{_AFTER}"
        begin, end = (at - 1, at + 2) if whole else (at, at + 1)
        if begin < done:
            return None  # in another order than the messages
        literals.append(text[done:begin])
        is_trimmed.append(not whole)
        starts.append(end)
        done = end
    literals.append(text[done:])
    ends = [start + len(literal) for start, literal in zip(starts, literals, strict=True)]
    marks = [(*_place(start, starts, ends), *_place(end, starts, ends)) for start, end in spans]
    return Skeleton(tuple(literals), tuple(is_trimmed), tuple(marks))


def _place(position: int, starts: list[int], ends: list[int]) -> tuple[int, int]:
    """The literal that holds a position (or ends there), and the offset in it."""
    number = bisect_left(ends, position)
    assert starts[number] <= position, "a mark inside a content"
    return number, position - starts[number]
