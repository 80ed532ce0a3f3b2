"""The turns of a rendered conversation that are trained, without what the model is given of them."""

from __future__ import annotations

from typing import NamedTuple

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.empty_reasoning import EmptyBlock
from data_prep.rendering.labels import Turns
from data_prep.rendering.reasoning import NO_REASONING, TAG_END, split_inline
from data_prep.rendering.template_probe import Given
from data_prep.tokenization.encoded_text import LooseSpan, Span


class TrainedTurns(NamedTuple):
    """Finds them.

    Args:
        train_on: see Renderer.
        given: what generation prompts hold of answers.
        block: the template's empty block of reasoning, if it has one.
        masks_block: whether it is left out of what is trained.
    """

    train_on: str
    given: Given
    block: EmptyBlock | None
    masks_block: bool

    def of(self, conversation: Conversation, text: str, spans: list[Span]) -> tuple[list[Span], Turns]:
        """The spans that are trained, and counts of their turns.

        Args:
            spans: of all turns of the assistant.

        Raises:
            BadRow: "marks_differ", "no_trained_tokens", or "no_reasoning".
        """
        trained: list[Span] = []
        num_with_reasoning = num_masked = num_blocks = 0
        for message, span in self._chosen(conversation, spans):
            start = span[0] + len(self._header(text, span[0]))
            end = self.block.end(text, start) if self.block else None
            own = self._without_what_is_given(text, (start, span[1]), end)
            trained.append(own)
            if end is None:
                num_with_reasoning += _has_reasoning(message, text, span)
            else:
                num_blocks += 1
                num_masked += own[0] >= end
        return trained, Turns(len(trained), num_with_reasoning, num_masked, num_blocks - num_masked)

    def _chosen(self, conversation: Conversation, spans: list[Span]) -> list[tuple[Message, Span]]:
        turns = [m for m in conversation.messages if m.role == "assistant"]
        if len(spans) != len(turns):
            raise BadRow("marks_differ", f"the template marks {len(spans)} texts, the row has {len(turns)} answers")
        if self.train_on == "flags":
            chosen = [m.train is True for m in turns]
        else:
            chosen = [m.train is not False and (self.train_on == "all" or m is turns[-1]) for m in turns]
        if not any(chosen):
            raise BadRow("no_trained_tokens", f"train_on: {self.train_on} leaves no answer of this row to train on")
        pairs = zip(turns, spans, chosen, strict=True)
        return [(message, span) for message, span, is_chosen in pairs if is_chosen]

    def _header(self, text: str, start: int) -> str:
        """What stands before all of an answer in its marks."""
        headers = (header for header in (self.given.header, self.given.after_tool) if header)
        return next((header for header in headers if text.startswith(header, start)), "")

    def _without_what_is_given(self, text: str, span: Span, block_end: int | None) -> Span:
        """The span without the empty block, if it has one that is masked, or what the generation prompt holds."""
        start, end = span
        if block_end is not None and self.masks_block:
            return LooseSpan(block_end, end)
        silent = self.given.silent if block_end is None else ""  # an empty block may be asked for as trained
        given = (self.given.prefix, self.given.opening, silent)
        prefixes = (prefix.removeprefix(self.given.header or "") for prefix in given)
        prefix = max((prefix for prefix in prefixes if text.startswith(prefix, start)), key=len, default="")
        if not prefix:
            if self.given.header is not None and block_end is None:
                raise BadRow("no_reasoning", NO_REASONING.format(self.given.prefix))
            return span
        start += len(prefix)
        # A prompt that begins the reasoning may end inside a token of the empty block: it prompts for no such turn.
        return (start, end) if block_end is None else LooseSpan(start, end)


def _has_reasoning(message: Message, text: str, span: Span) -> bool:
    """Whether a turn's reasoning is in its marked text; templates leave out that of earlier turns."""
    reasoning = message.reasoning
    if reasoning is None and TAG_END in message.content:
        reasoning, _ = split_inline(message.content)
    said = (reasoning or "").strip()
    return bool(said) and said in text[span[0] : span[1]]
