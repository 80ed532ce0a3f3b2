"""Conversation -> TokenizedExample: ids and labels made together, from one rendering of the chat template.

What is trained is what the template marks with `{% generation %}`: the assistant's words and the token that ends its
turn. The marks are character positions in the rendered text; the tokenizer's own offsets turn them into tokens. A token
that straddles a mark is an error, not a guess: at inference the prompt ends exactly there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.chat_templates import ChatTemplate, special_token_ids
from data_prep.control_tokens import ControlTokens
from data_prep.conversation import BadRow, Conversation, Message

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch's cross-entropy skips it
Span = tuple[int, int]  # first and one past the last character


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One document. Unshifted: the model shifts."""

    input_ids: np.ndarray  # (length,) int32
    labels: np.ndarray  # (length,) int32, IGNORE_INDEX where not trained

    @property
    def num_trained(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels != IGNORE_INDEX).sum())


class Renderer:
    """Renders conversations with one tokenizer and one chat template.

    Raises:
        ValueError: the template cannot be trained on with this tokenizer (found on a probe conversation).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, control_tokens: str = "escape"):
        self.tokenizer = tokenizer
        self.template = template
        self.special_ids = special_token_ids(tokenizer)
        self._special_id_set = frozenset(self.special_ids.values())
        self._control = ControlTokens(tokenizer, self.special_ids)
        self._reject = control_tokens == "reject"
        self._template_arguments: dict[str, Any] = {**tokenizer.special_tokens_map}
        self.end_token_ids = self._probe()

    def render(self, conversations: Sequence[Conversation]) -> list[TokenizedExample | BadRow]:
        """One result per conversation, in order; a BadRow where the conversation cannot be used."""
        results: list[TokenizedExample | BadRow | None] = [None] * len(conversations)
        plain: list[tuple[int, str, list[Span]]] = []  # (position, text, spans)
        for i, conversation in enumerate(conversations):
            try:
                if self._control.spelled_in(conversation):
                    results[i] = self._render_escaped(conversation)
                else:
                    text, spans = self._render_text(conversation.as_dicts())
                    plain.append((i, text, spans))
            except BadRow as bad:
                results[i] = bad
        encodings = self.tokenizer.backend_tokenizer.encode_batch(
            [entry[1] for entry in plain], add_special_tokens=False
        )
        for (i, _, spans), encoding in zip(plain, encodings, strict=True):
            results[i] = self._labelled(encoding, spans, encoding.ids)
        return [r for r in results if r is not None]

    def _render_text(self, messages: list[dict[str, str]]) -> tuple[str, list[Span]]:
        if self.template.has_marks:
            text, spans = self._apply(messages, with_spans=True)
        else:
            text, spans = self._derive_spans(messages)
        if not spans:
            raise BadRow("no_trained_tokens", "the template marks no assistant turn of this conversation")
        return text, spans

    def _apply(
        self, messages: list[dict[str, str]], *, with_spans: bool = False, prompt: bool = False
    ) -> tuple[str, Any]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [messages],
                chat_template=self.template.text,
                return_assistant_tokens_mask=with_spans,
                add_generation_prompt=prompt,
                **self._template_arguments,
            )
        except TemplateError as error:
            raise BadRow("template_refused", f"the chat template raises: {error}") from None
        return texts[0], [tuple(s) for s in spans[0]] if with_spans else []

    def _derive_spans(self, messages: list[dict[str, str]]) -> tuple[str, list[Span]]:
        """Spans of a template without marks: what a turn adds after its generation prompt."""
        text, _ = self._apply(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, _ = self._apply(messages[:i], prompt=True)
            until, _ = self._apply(messages[: i + 1])
            if not (text.startswith(until) and until.startswith(prompt)):
                raise BadRow(
                    "template_not_prefix",
                    f"the template renders turn {i} differently once later turns follow, so what to train cannot be "
                    "derived: use a built-in template, or put {% generation %} marks into a .jinja file",
                )
            spans.append((len(prompt), len(until)))
        return text, spans

    def _render_escaped(self, conversation: Conversation) -> TokenizedExample | BadRow:
        if self._reject:
            found = self._control.spelled_in(conversation)
            raise BadRow("control_token_in_text", f"the text spells the control token {found!r}")
        shielded, restore = self._control.shield(conversation)
        text, spans = self._render_text(shielded.as_dicts())
        encoding, ids, spans = restore(text, spans)
        return self._labelled(encoding, spans, ids)

    def _labelled(self, encoding: Encoding, spans: list[Span], ids: list[int]) -> TokenizedExample | BadRow:
        input_ids = np.array(ids, dtype=np.int32)
        labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int32)
        try:
            for span in spans:
                first, last = self._token_range(encoding, span)
                last = self._end_of_turn(ids, first, last)
                labels[first : last + 1] = input_ids[first : last + 1]
        except BadRow as bad:
            return bad
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            return BadRow("double_bos", "the document starts with two BOS tokens")
        return TokenizedExample(input_ids, labels)

    @staticmethod
    def _token_range(encoding: Encoding, span: Span) -> Span:
        """First and last token of the characters [start, end)."""
        start, end = span
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if start >= end or first is None or last is None:
            raise BadRow("no_trained_tokens", f"no token begins at character {start} or ends at {end}")
        offsets = encoding.offsets
        while last + 1 < len(offsets) and offsets[last + 1][0] < end:  # the bytes of one character share its offsets
            last += 1
        if offsets[first][0] != start or offsets[last][1] != end:
            raise BadRow(
                "straddling_token",
                f"a token covers characters {offsets[first]} or {offsets[last]}, but {span} is trained: the text "
                "there merges with the template's (a leading line break, say)",
            )
        return first, last

    def _end_of_turn(self, ids: list[int], first: int, last: int) -> int:
        """The token that ends the turn; only white space may follow it within the marks, and that is not trained."""
        end = last
        while end > first and ids[end] not in self._special_id_set:
            end -= 1
        rest = str(self.tokenizer.decode(ids[end + 1 : last + 1]))
        if ids[end] not in self._special_id_set or rest.strip():
            raise BadRow(
                "untrained_end",
                f"the trained text ends in {self.tokenizer.decode(ids[max(first, last - 3) : last + 1])!r}, not in a "
                "control token: a model trained so never stops. Put the end-of-turn token inside {% generation %}",
            )
        return end

    def _probe(self) -> list[int]:
        """Render a two-turn conversation: what fails here fails for every row. Returns the ids that end a turn."""
        turns = (Message("user", "Say hello."), Message("assistant", "Hello."))
        probe = Conversation(turns, "probe", 0)
        example = self.render([probe])[0]
        if isinstance(example, BadRow):
            raise ValueError(
                f"chat_template {self.template.origin!r} cannot be trained on with the tokenizer "
                f"{self.tokenizer.name_or_path!r}: {example.detail} ({example.reason})"
            )
        trained = example.input_ids[example.labels != IGNORE_INDEX]
        return sorted({int(trained[-1])})

    def coloured(self, input_ids: Sequence[int], labels: Sequence[int]) -> str:
        """The decoded row with the trained tokens in green and the others dim, for a terminal."""
        return coloured(self.tokenizer, input_ids, labels)


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
