"""Conversation -> TokenizedExample: ids and labels made together, from one rendering of the chat template.

What is trained is what the template marks with `{% generation %}`: the assistant's words and the token that ends its
turn. The marks are character positions in the rendered text; the tokenizer's own offsets turn them into tokens. A token
that straddles a mark is an error, not a guess: at inference the prompt ends exactly there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

from data_prep.chat_templates import ChatTemplate, control_token_ids, special_token_ids
from data_prep.control_tokens import ControlTokens
from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.encoded_text import Span, TextEncoder
from data_prep.labelling import IGNORE_INDEX, Labeller, TokenizedExample
from data_prep.left_out import check_complete
from data_prep.reasoning import CLOSE, lift, strip
from data_prep.skeletons import Skeletons

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTES_PER_CALL = 1 << 21  # of text encoded at once; `tokenizers` takes 25 to 100 times as many of memory
# Some templates print today's date. A run that goes on the next day has to make the same bytes, so the date is one that
# never changes: what Llama's own templates print where they are not given one.
_TODAY = date(2024, 7, 26)


class Renderer:
    """Renders conversations with one tokenizer and one chat template.

    Args:
        control_tokens: what to do with text that spells a control token: "escape", "reject" or "allow".
        train_on: which assistant turns: "all" not flagged off, the "last", or those that "flags" mark.
        reasoning: "keep" or "strip" the model's thoughts.

    Raises:
        ValueError: the template cannot be trained on with this tokenizer (found on a probe conversation).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        *,
        control_tokens: str = "escape",
        train_on: str = "all",
        reasoning: str = "keep",
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.special_ids = special_token_ids(tokenizer)
        self.train_on = train_on
        self.reasoning = reasoning
        self._policy = control_tokens
        self.encoder = TextEncoder(tokenizer.backend_tokenizer)
        self._control = ControlTokens(self.encoder, control_token_ids(tokenizer, template))
        self._template_arguments: dict[str, Any] = {**tokenizer.special_tokens_map}
        self._prints_reasoning = self._probe_reasoning()
        self._skeletons = Skeletons(template, self._apply_marked)
        self._labeller = Labeller(self.encoder, frozenset(self.special_ids.values()), tokenizer.bos_token_id)
        self._lead = ""  # what the generation prompt gives of the marked text
        self._lead = self._probe_lead()
        self.end_token_ids = self._probe()

    def render(self, conversations: Sequence[Conversation]) -> list[TokenizedExample | BadRow]:
        """One result per conversation, in order; a BadRow where the conversation cannot be used."""
        results: list[TokenizedExample | BadRow | None] = [None] * len(conversations)
        plain: list[tuple[int, str, list[Span]]] = []  # (position, text, spans)
        for i, conversation in enumerate(conversations):
            try:
                prepared, is_spelled = self._prepare(conversation)
                if is_spelled:
                    results[i] = self._render_escaped(prepared)
                else:
                    text, spans = self._render_text(prepared)
                    plain.append((i, text, spans))
            except BadRow as bad:
                results[i] = bad
        for start, end in _groups([text for _, text, _ in plain]):
            texts, trained = [text for _, text, _ in plain[start:end]], [marked for _, _, marked in plain[start:end]]
            labelled = self._labeller.label_batch(texts, self.encoder.encode_batch(texts), trained)
            for (i, _, _), result in zip(plain[start:end], labelled, strict=True):
                results[i] = result
        return [r for r in results if r is not None]

    def use_fast_encoder(self, sample: Sequence[Conversation]) -> str | None:
        """Encode with the faster encoder, if it agrees on the sample too; else why not (see TextEncoder.use_fast)."""
        texts = []
        for conversation in sample:
            with suppress(BadRow):
                texts.append(self._render_text(self._prepare(conversation)[0])[0])
        return self.encoder.use_fast(texts)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to render: loading transformers' tokenizer takes seconds."""
        return {**self.__dict__, "tokenizer": None}

    def _prepare(self, conversation: Conversation) -> tuple[Conversation, bool]:
        """The conversation with its thoughts where they belong, and whether a text of it has to be escaped."""
        if self.reasoning == "strip":
            conversation = strip(conversation)
        is_spelled = self._policy != "allow" and self._control.spelled_in(conversation) is not None
        if is_spelled and CLOSE in self._control:  # that of the thoughts is the model's own, and not quoted
            conversation = lift(conversation)
            is_spelled = self._control.spelled_in(conversation) is not None
        return conversation, is_spelled

    def _render_text(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The text, and the spans of the assistant turns that are trained."""
        placed = None if conversation.tools else self._skeletons.render(conversation.messages)
        text, spans = placed or self._render_template(conversation)
        trained = self._trained_spans(conversation, spans)
        return text, [self._without_lead(text, s) for s in trained] if self._lead else trained

    def _render_template(self, conversation: Conversation) -> tuple[str, list[Span]]:
        messages, tools = self._template_messages(conversation), list(conversation.tools) or None
        text, spans = (self._apply_marked if self.template.has_marks else self._derive_spans)(messages, tools)
        check_complete(messages, conversation.tools, text, spans)
        return text, spans

    def _apply_marked(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> tuple[str, list[Span]]:
        text, marked = self._apply(messages, tools, with_spans=True)
        return text, _merge_adjacent(marked)

    def _template_messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        self._check_supported(conversation)
        messages = conversation.as_dicts()
        for message in messages:
            reasoning = message.get("reasoning_content")
            if (
                reasoning is not None and not self._prints_reasoning
            ):  # the form that templates with reasoning of their own use as well
                del message["reasoning_content"]
                message["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{message['content']}"
        return messages

    def _check_supported(self, conversation: Conversation) -> None:
        """A template that never mentions tools would leave them out without a word."""
        for name, used in (("tools", bool(conversation.tools)), ("tool_calls", _has_calls(conversation))):
            if used and name not in self.template.text:
                raise BadRow(
                    "tools_not_in_template",
                    f"the row has {name}, which the chat template {self.template.origin!r} leaves out: choose one with "
                    "tools, such as qwen2_5, qwen3 or the tokenizer's own",
                )

    def _trained_spans(self, conversation: Conversation, spans: list[Span]) -> list[Span]:
        turns = [m for m in conversation.messages if m.role == "assistant"]
        if len(spans) != len(turns):
            raise BadRow("marks_differ", f"the template marks {len(spans)} texts, the row has {len(turns)} answers")
        if self.train_on == "flags":
            chosen = [m.train is True for m in turns]
        else:
            chosen = [m.train is not False and (self.train_on == "all" or m is turns[-1]) for m in turns]
        if not any(chosen):
            raise BadRow("no_trained_tokens", f"train_on: {self.train_on} leaves no answer of this row to train on")
        return [span for span, is_chosen in zip(spans, chosen, strict=True) if is_chosen]

    def _without_lead(self, text: str, span: Span) -> Span:
        start, end = span
        return (start + len(self._lead), end) if text.startswith(self._lead, start) else span

    def _apply(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, *, with_spans: bool = False, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils import chat_template_utils as library

        try:
            compiled = library._compile_jinja_template(self.template.text)  # kept by the library
            compiled.globals["strftime_now"] = _TODAY.strftime
            if with_spans and not tools and all(m.keys() == _PLAIN_KEYS for m in messages):
                return self._apply_plain(compiled, messages, prompt)
            rendered: Any = library.render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.template.text,
                return_assistant_tokens_mask=with_spans,
                add_generation_prompt=prompt,
                **self._template_arguments,
            )
        except Exception as error:  # a template may do what raises anything, such as adding text to an object
            raise BadRow("template_refused", f"the chat template raises {type(error).__name__}: {error}") from None
        texts, spans = rendered
        return texts[0], [(start, end) for start, end in spans[0]] if with_spans else []

    def _apply_plain(self, compiled: Any, messages: list[dict[str, Any]], prompt: bool) -> tuple[str, list[Span]]:
        """What render_jinja_template does with messages of plain text; it looks through and copies each of them."""
        from transformers.utils import chat_template_utils as library

        return library._render_with_assistant_indices(
            compiled, messages, None, None, prompt, **self._template_arguments
        )

    def _derive_spans(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> tuple[str, list[Span]]:
        """Spans of a template without marks: what a turn adds after its generation prompt."""
        text, _ = self._apply(messages, tools)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, _ = self._apply(messages[:i], tools, prompt=True)
            until, _ = self._apply(messages[: i + 1], tools)
            if not (text.startswith(until) and until.startswith(prompt)):
                raise BadRow(
                    "template_not_prefix",
                    f"the template renders turn {i} differently once later turns follow, so what to train cannot be "
                    "derived: use a built-in template, or put {% generation %} marks into a .jinja file",
                )
            spans.append((len(prompt), len(until)))
        return text, spans

    def _render_escaped(self, conversation: Conversation) -> TokenizedExample | BadRow:
        if self._policy == "reject":
            found = self._control.spelled_in(conversation)
            raise BadRow("control_token_in_text", f"the text spells the control token {found!r}")
        shielded, restore = self._control.shield(conversation)
        return self._labeller.label(*restore(*self._render_text(shielded)))

    def _probe_reasoning(self) -> bool:
        """Whether the template prints thoughts, in an answer or beside a call; naming their field is not enough."""
        question, answer = (m.as_dict() for m in _PROBE)
        call = {**answer, "content": "", "tool_calls": [ToolCall("look_up", {}).as_dict()]}
        for turn in (answer, call):
            with suppress(BadRow):
                if _THOUGHTS in self._apply([question, {**turn, "reasoning_content": _THOUGHTS}], None)[0]:
                    return True
        return False

    def _probe_lead(self) -> str:
        """What stands both in the generation prompt and in the marks: the model is given it, so it is not trained.

        Raises:
            ValueError: the marks begin after the generation prompt ends, so the model would have to begin its answer
                with text it is never trained on.
        """
        turns = [m.as_dict() for m in _PROBE]
        try:
            text, spans = self._apply(turns, None, with_spans=True)
            prompt, _ = self._apply(turns[:1], None, prompt=True)
        except BadRow:
            return ""  # the whole probe says it better
        if not self.template.has_marks or not spans:
            return ""
        start = spans[0][0]
        if not text.startswith(prompt) or len(prompt) < start:
            raise ValueError(
                f"chat_template {self.template.origin!r}: what is trained begins after {text[:start][-40:]!r}, but the "
                f"generation prompt ends in {prompt[-40:]!r}: at inference the model would begin with text that it was "
                "never trained on. Let `add_generation_prompt` end where `{% generation %}` begins"
            )
        return prompt[start:]

    def _probe(self) -> list[int]:
        """Render a two-turn conversation: what fails here fails for every row. Returns the ids that end a turn."""
        flagged = (_PROBE[0], Message("assistant", _PROBE[1].content, train=True))
        example = self.render([Conversation(flagged, "probe", 0)])[0]
        if isinstance(example, BadRow):
            raise ValueError(
                f"chat_template {self.template.origin!r} cannot be trained on with the tokenizer "
                f"{self.tokenizer.name_or_path!r}: {example.detail} ({example.reason})"
            )
        trained = example.input_ids[example.labels != IGNORE_INDEX]
        return sorted({int(trained[-1])})


_PLAIN_KEYS = {"role", "content"}
_THOUGHTS = "They greet me."
_PROBE = (Message("user", "Say hello."), Message("assistant", "Hello."))


def _groups(texts: list[str]) -> Iterator[Span]:
    """First and one past the last of the texts that are encoded in one call: many, as freeing what `tokenizers` makes
    of a few hundred before it makes the next costs a fifth of the time, but no more than memory is meant for."""
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text) if text.isascii() else 3 * len(text)
        if size >= _BYTES_PER_CALL or end == len(texts):
            yield start, end
            start, size = end, 0


def _has_calls(conversation: Conversation) -> bool:
    return any(m.tool_calls for m in conversation.messages)


def _merge_adjacent(spans: list[Span]) -> list[Span]:
    """Marks that follow each other without a gap belong to one turn (some templates mark the end token by itself)."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def coloured(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> str:
    """Decode runs of trained (green) and untrained (dim) tokens; runs are decoded whole so that no character breaks."""
    green, dim, reset = "\033[1;32m", "\033[2m", "\033[0m"
    parts, start = [], 0
    for i in range(1, len(input_ids) + 1):
        if i == len(input_ids) or (labels[i] == IGNORE_INDEX) != (labels[start] == IGNORE_INDEX):
            colour = dim if labels[start] == IGNORE_INDEX else green
            parts.append(colour + str(tokenizer.decode(list(input_ids[start:i]))) + reset)
            start = i
    return "".join(parts)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Hashes that identify a tokenizer: of all of it, and of its vocabulary alone (token -> id)."""
    import hashlib

    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True).encode()
    whole = tokenizer.backend_tokenizer.to_str().encode()
    return {
        "name": tokenizer.name_or_path,
        "sha256": hashlib.sha256(whole).hexdigest(),
        "vocab_sha256": hashlib.sha256(vocabulary).hexdigest(),
        "size": len(tokenizer),
    }
