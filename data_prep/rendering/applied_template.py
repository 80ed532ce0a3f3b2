"""A chat template applied to messages: the text, and the spans of what the model says in it."""

from __future__ import annotations

from datetime import date
from typing import Any

from data_prep.conversation import BadRow
from data_prep.rendering.call_ids import with_call_ids
from data_prep.rendering.call_reasoning import CallReasoning
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.generation_prompts import STAND_IN, Closings, after_prompt, after_same_header
from data_prep.rendering.reasoning import CLOSE, NO_REASONING, TAG_END, with_reasoning
from data_prep.rendering.turn_spans import between_others, merge_adjacent
from data_prep.rendering.written_reasoning import WrittenReasoning, after_closed, begins_reasoning
from data_prep.tokenization.encoded_text import Span

# Some templates print today's date. A run that goes on the next day has to make the same bytes, so the date is one that
# never changes: what Llama's own templates print where they are not given one.
_TODAY = date(2024, 7, 26)
_PLAIN_KEYS = {"role", "content"}
_STAND_IN_TURN = {"role": "assistant", "content": STAND_IN}
THINKING_NAMES = ("enable_thinking", "thinking", "reasoning")  # the names that templates have for it


class AppliedTemplate:
    """Renders messages with a chat template.

    Args:
        arguments: what the template may print besides messages and tools, such as the special tokens.

    Attributes:
        closings: what ends turns, where the template prints it with the next turn.
        makes_call_ids: whether calls of tools are given ids.
        footers: what is printed after any last turn, by what the model is asked (see `footer_of`); left out of texts.
        reasoning_place: where messages hold reasoning, as the template prints it (see `with_reasoning`); or None.
        next_to_calls: how reasoning is printed that no answer shows; None where answers do.
        written: how the model writes reasoning that the template does not print; None where it does.
    """

    def __init__(self, template: ChatTemplate, arguments: dict[str, Any]):
        self._template, self._arguments = template, arguments
        self.closings = Closings()
        self.makes_call_ids = False
        self.footers: dict[bool | None, str] = {}
        self.reasoning_place: str | None = None
        self.written: WrittenReasoning | None = None
        self.next_to_calls: CallReasoning | None = None

    def __call__(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        *,
        with_spans: bool = False,
        prompt: bool = False,
        thinks: bool | None = None,
    ) -> tuple[str, list[Span]]:
        """The text, with the generation prompt if `prompt`, and the marked spans if `with_spans`. With `thinks`, the
        prompt is that of a model that shall think, or shall not, where the template knows one.

        Raises:
            BadRow: "template_refused".
        """
        from transformers.utils import chat_template_utils as library

        if self.makes_call_ids:
            messages = with_call_ids(messages)
        tools = tools or list(self._template.probe_tools) or None
        try:
            compiled = library._compile_jinja_template(self._template.text)  # kept by the library
            compiled.globals["strftime_now"] = _TODAY.strftime
            if with_spans and thinks is None and not tools and all(m.keys() == _PLAIN_KEYS for m in messages):
                return self._apply_plain(compiled, messages, prompt)
            rendered: Any = library.render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self._template.text,
                return_assistant_tokens_mask=with_spans,
                add_generation_prompt=prompt,
                **(self._arguments if thinks is None else self._arguments | dict.fromkeys(THINKING_NAMES, thinks)),
            )
        except Exception as error:  # a template may do what raises anything, such as adding text to an object
            raise BadRow("template_refused", _refusal(error, tools)) from None
        texts, spans = rendered
        footer = "" if prompt else self.footers.get(thinks, "")
        return texts[0].removesuffix(footer), [(start, end) for start, end in spans[0]] if with_spans else []

    def _apply_plain(self, compiled: Any, messages: list[dict[str, Any]], prompt: bool) -> tuple[str, list[Span]]:
        """What render_jinja_template does with messages of plain text; it looks through and copies each of them."""
        from transformers.utils import chat_template_utils as library

        return library._render_with_assistant_indices(compiled, messages, None, None, prompt, **self._arguments)

    def answers(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None, thinks: bool | None = None
    ) -> tuple[str, list[Span]]:
        """The text, and the spans of the assistant's turns, marked or derived from prefixes.

        Args:
            thinks: whether the model is asked to think; None: as the template has it.

        Raises:
            BadRow: the template refuses the messages, or renders a turn differently once later ones follow.
        """
        if not self._template.has_marks:
            return self._derive(messages, tools, thinks)
        text, marked = self(messages, tools, with_spans=True, thinks=thinks)
        return text, merge_adjacent(marked)

    def prompted(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None, thinks: bool | None = None
    ) -> tuple[str, list[Span]]:
        """The prompt of a server for the last turn, and that turn; the spans of all turns of the assistant.

        Args:
            thinks: see `answers`.

        Raises:
            BadRow: "template_not_prefix": where the turn begins cannot be told.
        """
        *before, last = messages
        if self.next_to_calls and self.next_to_calls.is_in(last):
            return self._reasoned(self.next_to_calls, before, last, tools)
        if self.written:
            before = [self.written.without(message) for message in before]
            if _has_reasoning(last):
                return self._written(self.written, [*before, last], tools, thinks)
        for asked in (thinks, _has_reasoning(last)):
            prompt, context = self._context(before, tools, asked)
            answer = self._answer_after(prompt, [*before, last], tools, asked)
            if answer is not None:
                _check_reasoning(prompt, answer)
                return prompt + answer, [*context, (len(prompt), len(prompt) + len(answer))]
        if not _has_reasoning(last):
            _check_reasoning(self(before, tools, prompt=True, thinks=thinks)[0], "")
        raise self._no_prefix(before, tools)

    def _written(
        self, written: WrittenReasoning, messages: list[dict[str, Any]], tools: list[Any] | None, thinks: bool | None
    ) -> tuple[str, list[Span]]:
        """`prompted` for a turn with reasoning that the template does not print as the model writes it."""
        *before, last = messages
        said, reasoning = _last_content(before), written.of(last)
        last = written.without(last)
        for asked in (thinks, True):
            prompt, context = self._context(before, tools, asked)
            text, _ = self([*before, last], tools, thinks=asked)
            stand_in, _ = self([*before, _STAND_IN_TURN], tools, thinks=asked)
            answer = written.after(prompt, text + self.closings.of(last), stand_in, said, reasoning)
            if answer is not None:
                return prompt + answer, [*context, (len(prompt), len(prompt) + len(answer))]
        raise self._no_prefix(before, tools)

    def _reasoned(
        self, block: CallReasoning, before: list[dict[str, Any]], last: dict[str, Any], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """`prompted` for an answer whose reasoning the template prints next to calls alone."""
        prompt, context = self._context(before, tools, True)
        answer = self._answer_after(prompt, [*before, block.without(last)], tools, True)
        if answer is None:
            raise self._no_prefix(before, tools)
        said = block.of(last) + answer
        return prompt + said, [*context, (len(prompt), len(prompt) + len(said))]

    def _context(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, thinks: bool | None
    ) -> tuple[str, list[Span]]:
        """The prompt, and where the assistant's earlier turns are in it."""
        prompt, marked = self(messages, tools, with_spans=self._template.has_marks, prompt=True, thinks=thinks)
        spans = merge_adjacent(marked) if self._template.has_marks else between_others(messages, prompt)
        return prompt, spans

    def _answer_after(
        self, prompt: str, messages: list[dict[str, Any]], tools: list[Any] | None, thinks: bool | None
    ) -> str | None:
        """What the model says after the prompt, also where the template prints the turns before otherwise by then."""
        *before, _ = messages
        text, marked = self(messages, tools, with_spans=self._template.has_marks, thinks=thinks)
        text += self.closings.of(messages[-1])
        bare, _ = self(before, tools, thinks=thinks)
        cue = prompt[len(bare) :] if prompt.startswith(bare) else ""
        if text.startswith(prompt) and cue:
            return text[len(prompt) :]
        if not self._template.has_marks:
            is_silent = not _has_reasoning(messages[-1])
            said = _last_content(before)
            stand_in, _ = self([*before, _STAND_IN_TURN], tools, thinks=thinks)
            same = after_same_header(prompt, text, stand_in, said, str(messages[-1]["content"]))
            if same or not is_silent:
                return same
            return (
                self._after_other_print(prompt, bare, text, before, tools)
                or self._after_block(prompt, text, messages, tools)
                or after_closed(prompt, text, stand_in, said)
            )
        start, end = merge_adjacent(marked)[-1] if marked else (0, 0)
        start -= len(cue) if text[:start].endswith(cue) else 0
        return text[start + len(cue) : end] if cue and text.startswith(cue, start) else None

    def _after_other_print(
        self, prompt: str, bare: str, text: str, before: list[dict[str, Any]], tools: list[Any] | None
    ) -> str | None:
        """The turn after a prompt that the template prints otherwise before the turn. Where it adds something, such as
        an empty block of reasoning, only for a model that is asked not to think: a prompt that is the same for one
        that is asked to begins the reasoning."""
        thinking, silent = (self(before, tools, prompt=True, thinks=asked)[0] for asked in (True, False))
        if prompt != bare and (prompt != silent or thinking == silent):
            return None
        stand_in, _ = self([*before, _STAND_IN_TURN], tools, thinks=False)
        return after_prompt(prompt, text, stand_in, _last_content(before))

    def _after_block(
        self, prompt: str, text: str, messages: list[dict[str, Any]], tools: list[Any] | None
    ) -> str | None:
        """The turn after a prompt that ends in the empty block of a turn that thinks nothing (Cohere's)."""
        if not self.reasoning_place:
            return None
        *before, last = messages
        thinking, _ = self([*before, with_reasoning(last, STAND_IN, self.reasoning_place)], tools)
        silent = thinking.replace(STAND_IN, "", 1)
        answer = silent[len(prompt) :] + self.closings.of(last) if silent.startswith(prompt) else ""
        return answer if STAND_IN in thinking and answer and text.endswith(answer) else None

    def _no_prefix(self, before: list[dict[str, Any]], tools: list[Any] | None) -> BadRow:
        """Why a last turn does not continue its prompt."""
        bare, _ = self(before, tools)
        prompt, _ = self(before, tools, prompt=True)
        return BadRow(
            "template_not_prefix",
            f"the template prints turn {len(before)} otherwise than after its own generation prompt, which ends in "
            f"{prompt.removeprefix(bare)[-60:]!r}, so what to train cannot be derived: where the prompt begins the "
            "model's reasoning, give the answer one; else use a built-in template, or put {% generation %} marks into "
            "a .jinja file",
        )

    def _derive(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, thinks: bool | None
    ) -> tuple[str, list[Span]]:
        """Spans of a template without marks: what a turn adds after its generation prompt."""
        if self.written and any(map(_has_reasoning, messages)):
            raise BadRow("template_not_prefix", "the template leaves reasoning out of turns that follow its own prompt")
        text, _ = self(messages, tools, thinks=thinks)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            until, _ = self(messages[: i + 1], tools, thinks=thinks)
            if i == len(messages) - 1:
                text += self.closings.of(message)
            prompts = (self(messages[:i], tools, prompt=True, thinks=asked)[0] for asked in (thinks, False, True))
            prompt = next((prompt for prompt in prompts if until.startswith(prompt)), None)
            if prompt is None:
                raise self._no_prefix(messages[:i], tools)
            _check_reasoning(prompt, until[len(prompt) :])
            if not text.startswith(until):
                raise BadRow(
                    "template_not_prefix",
                    f"the template renders turn {i} differently once later turns follow, so what to train cannot be "
                    "derived: use a built-in template, or put {% generation %} marks into a .jinja file",
                )
            spans.append((len(prompt), self._end_of_turn(text, len(until), message)))
        return text, spans

    def _end_of_turn(self, text: str, end: int, message: dict[str, Any]) -> int:
        """One past the token that ends a turn, where the template prints it with the next turn."""
        closing = self.closings.of(message)
        return end + len(closing) if text.startswith(closing, end) else end


def _refusal(error: Exception, tools: list[Any] | None) -> str:
    said = f"the chat template raises {type(error).__name__}: {error}"
    if isinstance(error, TypeError) and "NoneType" in said and not tools:
        return (
            f"{said}. Some templates (tool_use of Command R+, of Hermes) take no row without tools: name the tokenizer "
            "that has it, whose default one renders such rows"
        )
    return said


def _last_content(messages: list[dict[str, Any]]) -> str:
    return str(messages[-1]["content"]).strip() if messages else ""


def _check_reasoning(prompt: str, answer: str) -> None:
    """Refuse an answer without reasoning after a prompt that begins it."""
    if begins_reasoning(prompt) and CLOSE not in answer:
        raise BadRow("no_reasoning", NO_REASONING.format(prompt[-40:]))


def _has_reasoning(message: dict[str, Any]) -> bool:
    """Whether a message of the form that templates take holds the model's reasoning."""
    return bool(message.keys() - _PLAIN_KEYS - {"tool_calls"}) or TAG_END in str(message["content"])
