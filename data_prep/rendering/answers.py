"""What becomes of an answer before it is rendered: end tokens that it spells, and its reasoning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering import reasoning
from data_prep.rendering.end_tokens import EndTokens
from data_prep.rendering.rewrites import ANSWER_START, Removal

_BLANK_LINES, _BLANKS = re.compile(r"\s*[\r\n]"), re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What the recipe and the template ask for.

    Args:
        end_tokens: "strip", "keep" or "reject" those that an answer ends in.
        reasoning: "keep" or "strip".
        lifts: whether reasoning inside an answer moves to the field for it.
        drops_empty: whether an empty block of reasoning inside an answer goes, as the template prints its own or the
            recipe leaves it out.
    """

    ends: EndTokens
    end_tokens: str
    reasoning: str
    lifts: bool
    drops_empty: bool

    def apply(self, conversation: Conversation) -> tuple[Conversation, Sequence[Removal]]:
        """The conversation as it is rendered, and what is gone from it.

        Raises:
            BadRow: an answer that cannot be used.
        """
        for message in conversation.messages:
            if message.role == "assistant" and self._may_change(message):
                break
        else:
            return conversation, ()
        messages, removed = [], []
        for message in conversation.messages:
            if message.role == "assistant":
                message, gone = self._apply(message)
                removed += gone
            messages.append(message)
        return replace(conversation, messages=tuple(messages)), removed

    def _may_change(self, message: Message) -> bool:
        """Whether an answer may; most do not."""
        content = message.content
        return reasoning.TAG_END in content or message.reasoning is not None or self.ends.may_end(content)

    def _apply(self, message: Message) -> tuple[Message, list[Removal]]:
        removed: list[Removal] = []
        if self.end_tokens != "keep":
            ended = message.content
            message, removed = self.ends.strip(message)
            if removed and self.end_tokens == "reject":
                raise BadRow("end_token_in_answer", f"an answer ends in an end token: {ended[-60:]!r}")
        if self.reasoning == "strip":
            message, reasons = reasoning.strip(message)
            return message, removed + reasons
        reasoning.check_closed(message)
        return self._lifted(message), removed

    def _lifted(self, message: Message) -> Message:
        """The message with the reasoning inside its answer where it belongs."""
        if reasoning.is_blank(message.reasoning):
            message = replace(message, reasoning=None)
        lifted = reasoning.lift(message)
        if self.drops_empty and reasoning.is_blank(lifted.reasoning):
            return replace(lifted, reasoning=None)
        return lifted if self.lifts or message.reasoning is not None else message


def without_leading_blanks(conversation: Conversation) -> Iterator[tuple[Conversation, list[Removal]]]:
    """The conversation without the blank lines that its answers begin with, then without their indentation too; and
    what is gone. The first token of such an answer may be one with the line break that the template ends the prompt in.
    """
    for blanks in (_BLANK_LINES, _BLANKS):
        messages, removed = [], []
        for message in conversation.messages:
            found = blanks.match(message.content) if message.role == "assistant" else None
            if found and found[0]:
                removed.append(Removal(ANSWER_START, found[0]))
                message = replace(message, content=message.content[found.end() :])
            messages.append(message)
        if removed:
            yield replace(conversation, messages=tuple(messages)), removed
