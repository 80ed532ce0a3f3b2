"""Skeletons: the text that a chat template prints around the contents, found once for each order of roles.

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
from typing import Any, NamedTuple

from data_prep.conversation import Message
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.rewrites import KEPT, Place, Removal, Trim, between_blanks, find_places, find_trims, signs
from data_prep.tokenization.encoded_text import Span

Apply = Callable[[list[dict[str, Any]]], "tuple[str, list[Span]]"]  # messages -> the text and its marked spans
_MOST = 4096  # orders of roles that are kept: long dialogues rarely have one in common


class Rendered(NamedTuple):
    """A conversation as the template prints it."""

    text: str
    spans: list[Span]  # of the assistant's turns
    removed: list[Removal]  # what the template does not print of the texts


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a template prints for one order of roles."""

    literals: tuple[str, ...]  # before, between and after the contents
    trims: tuple[Trim | None, ...]  # per content; None: printed as it is
    marks: tuple[tuple[int, int, int, int], ...]  # of each span: start's literal, offset in it, end's literal, offset

    def fill(self, messages: Sequence[Message]) -> Rendered:
        """The rendered text and its marked spans, in characters."""
        parts = [self.literals[0]]
        literal_starts = [0]
        length = len(self.literals[0])
        removed: list[Removal] = []
        for message, trim, literal in zip(messages, self.trims, self.literals[1:], strict=True):
            text = message.content
            if trim is not None and len(text := trim.of(message.content)) < len(message.content):
                removed += trim.removals(message)
            parts += text, literal
            literal_starts.append(length + len(text))
            length += len(text) + len(literal)
        spans = [(literal_starts[first] + start, literal_starts[last] + end) for first, start, last, end in self.marks]
        return Rendered("".join(parts), spans, removed)


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

    def render(self, messages: Sequence[Message]) -> Rendered | None:
        """The rendering, or None where the template itself has to be rendered."""
        if not self._is_placed:
            return None
        for message in messages:
            if message.tool_calls or message.reasoning is not None:
                return None
            if self._unless and self._unless in message.content:
                return None
        roles = tuple([m.role for m in messages])
        if roles not in self._by_roles:
            if len(self._by_roles) >= _MOST:
                return None
            self._by_roles[roles] = self._make(roles)
        skeleton = self._by_roles[roles]
        return skeleton.fill(messages) if skeleton else None

    def _make(self, roles: tuple[str, ...]) -> Skeleton | None:
        wanted = signs(len(roles))

        def apply(contents: Sequence[str]) -> tuple[str, list[Span]]:
            turns = zip(roles, contents, strict=True)
            return self._apply([{"role": role, "content": content} for role, content in turns])

        trims = find_trims(lambda contents: apply(contents)[0], wanted)
        text, spans = apply([between_blanks(sign) for sign in wanted])
        places = find_places(text, wanted)
        return None if trims is None or places is None else _cut(text, spans, places, trims)


def _cut(text: str, spans: list[Span], places: Sequence[Place], trims: Sequence[Trim]) -> Skeleton:
    """Cut the contents out of a rendering in which each is at its place."""
    starts, ends = [0, *(p.end for p in places)], [*(p.start for p in places), len(text)]
    literals = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    marks = [(*_place(start, starts, ends), *_place(end, starts, ends)) for start, end in spans]
    needed = [None if trim == KEPT else trim for trim in trims]
    return Skeleton(tuple(literals), tuple(needed), tuple(marks))


def _place(position: int, starts: list[int], ends: list[int]) -> tuple[int, int]:
    """The literal that holds a position (or ends there), and the offset in it."""
    number = bisect_left(ends, position)
    assert starts[number] <= position, "a mark inside a content"
    return number, position - starts[number]
