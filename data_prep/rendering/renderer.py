"""Conversation -> TokenizedExample: ids and labels made together, from one rendering of the chat template.

What is trained is what the template marks with `{% generation %}`: the assistant's words and the token that ends its
turn. The marks are character positions in the rendered text; the tokenizer's own offsets turn them into tokens. A token
that straddles a mark is an error, not a guess: at inference the prompt ends exactly there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from data_prep.conversation import BadRow, Conversation
from data_prep.rendering import template_probe
from data_prep.rendering.answers import AnswerRules, without_leading_blanks
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.call_reasoning import find_call_reasoning
from data_prep.rendering.chat_templates import ChatTemplate, control_token_ids
from data_prep.rendering.control_tokens import ControlTokens
from data_prep.rendering.empty_reasoning import find_empty_block, prints_block
from data_prep.rendering.end_tokens import WELL_KNOWN, EndTokens
from data_prep.rendering.labels import NO_TURNS, STRADDLING, Labeller, TokenizedExample, Turns
from data_prep.rendering.named_templates import TOOL_USE
from data_prep.rendering.plain_texts import adds_bos, framed_text
from data_prep.rendering.reasoning import CLOSE, inline, with_reasoning
from data_prep.rendering.rewrites import ESCAPED, Removal, Rewrite
from data_prep.rendering.system_prompts import are_left_out_after_results, as_printed
from data_prep.rendering.template_omissions import check_complete
from data_prep.rendering.template_shapes import Shapes
from data_prep.rendering.template_skeletons import Rendered, Skeletons
from data_prep.rendering.trained_turns import TrainedTurns
from data_prep.tokenization.encoded_text import Span
from data_prep.tokenization.text_encoder import FAST_ENCODERS, TextEncoder
from data_prep.tokenization.tokenizer import special_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORT, _MOST_SHORT = 64, 1 << 16  # characters of a short text; such texts whose tokens are remembered
_BYTES_PER_CALL = 1 << 21  # of text encoded at once; `tokenizers` takes 25 to 100 times as many of memory


class _Prepared:
    """A row before it is rendered.

    Args:
        conversation: as it is rendered.
        cut: what is gone from it.
        num_escaped: control tokens that its texts spell and that have to be escaped.
    """

    __slots__ = ("conversation", "cut", "num_escaped", "omitted", "turns")

    def __init__(self, conversation: Conversation, cut: Sequence[Removal], num_escaped: int):
        self.conversation, self.cut, self.num_escaped = conversation, cut, num_escaped
        self.omitted: Sequence[Removal] = ()  # what the template does not print
        self.turns = NO_TURNS


class Renderer:
    """Renders conversations with one tokenizer and one chat template.

    Args:
        control_tokens: what to do with text that spells a control token: "escape", "reject" or "allow".
        train_on: which assistant turns: "all" not flagged off, the "last", or those that "flags" mark.
        reasoning: "keep" or "strip" the model's reasoning.
        end_tokens_in_answers: what to do with end tokens that answers end in: "strip", "keep" or "reject".
        empty_reasoning: whether the empty block of reasoning that a template prints in a turn without one is trained:
            "mask", "train", or "leave_out" for a template that prints none.
        shared: another renderer with this tokenizer and template text, whose encoder is used.

    Raises:
        ValueError: the template cannot be trained on with this tokenizer (found on a probe conversation), or prints an
            empty block that is to be left out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        *,
        control_tokens: str = "escape",
        train_on: str = "all",
        reasoning: str = "keep",
        end_tokens_in_answers: str = "strip",
        empty_reasoning: str = "mask",
        shared: Renderer | None = None,
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.special_ids = special_token_ids(tokenizer)
        self.train_on = train_on
        self._policy = control_tokens
        self.encoder: TextEncoder = shared.encoder if shared else TextEncoder(tokenizer.backend_tokenizer)
        self._sizes: dict[str, int] = {}  # short text that was removed -> tokens
        self._control: ControlTokens = (
            shared._control if shared else ControlTokens(self.encoder, control_token_ids(tokenizer, template))
        )
        self._special_tokens: dict[str, Any] = {**tokenizer.special_tokens_map}
        self._adds_bos = adds_bos(tokenizer)
        self._apply = AppliedTemplate(template, self._special_tokens)
        self._apply.makes_call_ids = template_probe.needs_call_ids(self._apply)
        self._loses_system_prompts = are_left_out_after_results(self._apply)
        self._apply.footers = template_probe.footers(template, self._apply, self._known_ends(), self.special_ids)
        self._apply.closings = template_probe.closings(template, self._apply, self.special_ids)
        self._reasoning_place = template_probe.reasoning_place(self._apply)
        self._apply.written = template_probe.written_reasoning(template, self._apply, self._reasoning_place)
        self._apply.reasoning_place = self._reasoning_place
        self._apply.next_to_calls = (
            None if template.has_marks else find_call_reasoning(self._apply, self._reasoning_place)
        )
        self._takes_json_text = template_probe.takes_json_text(self._apply)
        self._skeletons = Skeletons(template, self._apply.answers)
        self._shapes = Shapes(self._print)
        self._labeller = Labeller(self.encoder, frozenset(self.special_ids.values()), tokenizer.bos_token_id)
        block = find_empty_block(self._apply, self._reasoning_place)
        if empty_reasoning == "leave_out" and block and self._reasoning_place:
            raise ValueError(prints_block(template, block))
        # A row without reasoning stands for a model that was asked not to think, where the template says so elsewhere.
        self._asks_not_to_think = (
            block is not None and empty_reasoning == "mask" and template_probe.says_not_to_think(self._apply)
        )
        self._asks_to_think = template_probe.has_to_be_asked_to_think(self._apply, self._reasoning_place)
        given = template_probe.given_of_answers(template, self._apply, self._reasoning_place)
        self._trained_turns = TrainedTurns(train_on, given, block, empty_reasoning == "mask")
        # The tags of a leading <think> block are the model's own, not quoted.
        lifts = self._reasoning_place is not None or (control_tokens != "allow" and CLOSE in self._control)
        drops_empty = self._reasoning_place is not None or empty_reasoning == "leave_out"
        self._rules = AnswerRules(EndTokens(()), "keep", reasoning, lifts, drops_empty)
        self.end_token_ids = template_probe.end_token_ids(template, tokenizer.name_or_path, given, self.render)
        own = EndTokens(self._spelled_ends())
        self._rules = AnswerRules(own, end_tokens_in_answers, reasoning, lifts, drops_empty)

    def _known_ends(self) -> list[str]:
        """Control tokens that end turns whatever the template is."""
        return [text for text in self.special_ids if text in WELL_KNOWN or text == self.tokenizer.eos_token]

    def _spelled_ends(self) -> list[str]:
        """The tokenizer's and the template's end tokens, but for those that are words or white space."""
        ids = {*self.end_token_ids, self.tokenizer.eos_token_id} - {None}
        texts = sorted(text for text, number in self.special_ids.items() if number in ids)
        return [text for text in texts if not text.strip()[:1].isalnum() and len(text.strip()) > 2]

    def render(self, conversations: Sequence[Conversation]) -> list[TokenizedExample | BadRow]:
        """One result per conversation, in order; a BadRow where the conversation cannot be used."""
        results: list[TokenizedExample | BadRow | None] = [None for _ in conversations]
        prepared: dict[int, _Prepared] = {}
        plain: list[tuple[int, str, list[Span]]] = []  # (position, text, spans)
        for i, conversation in enumerate(conversations):
            try:
                row = prepared[i] = self._prepare(conversation)
                if row.num_escaped:
                    results[i] = self._render_escaped(row)
                else:
                    plain.append((i, *self._render_row(row, row.conversation)))
            except BadRow as bad:
                results[i] = bad
        for start, end in _groups([text for _, text, _ in plain]):
            positions, texts, trained = zip(*plain[start:end], strict=True)
            encoded = self.encoder.encode_batch(list(texts))
            for i, result in zip(positions, self._labeller.label_batch(texts, encoded, trained), strict=True):
                results[i] = result
        finished = (r if i not in prepared else self._finish(r, prepared[i]) for i, r in enumerate(results))
        return [r for r in finished if r is not None]

    def use_fast_encoder(self, sample: Sequence[Conversation], encoders: Sequence[str] = FAST_ENCODERS) -> str | None:
        """Encode with the first of the faster encoders that agrees on the sample too (see TextEncoder.use_fast)."""
        texts = []
        for conversation in sample:
            with suppress(BadRow):
                texts.append(self._text_of(conversation))
        refused = self.encoder.use_fast(texts, encoders, self._control.tokens)
        if self._policy == "escape":
            self._control.use_fast(texts)
        return refused

    def _text_of(self, conversation: Conversation) -> str:
        return self._render_text(self._prepare(conversation).conversation)[0]

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to render: loading transformers' tokenizer takes seconds."""
        return {**self.__dict__, "tokenizer": None}

    def _prepare(self, conversation: Conversation) -> _Prepared:
        """The conversation with its answers and their reasoning as they belong."""
        cut: Sequence[Removal] = []
        if not conversation.is_text:
            conversation, cut = self._rules.apply(conversation)
        is_spelled = self._policy != "allow" and self._control.spelled_in(conversation) is not None
        return _Prepared(conversation, cut, self._control.num_spelled(conversation) if is_spelled else 0)

    def _finish(self, result: TokenizedExample | BadRow | None, row: _Prepared) -> TokenizedExample | BadRow | None:
        """The result with what was rewritten in its row; where an answer's leading blanks would be one token with the
        template's, without them."""
        if isinstance(result, BadRow):
            return self._without_leading_blanks(row, result) if result.reason == STRADDLING else result
        return result and self._with_counts(result, row)

    def _with_counts(self, result: TokenizedExample, row: _Prepared) -> TokenizedExample:
        rewrites = self._rewrites(row) if row.cut or row.omitted or row.num_escaped else ()
        return TokenizedExample(result.input_ids, result.labels, rewrites, row.turns)

    def _without_leading_blanks(self, row: _Prepared, bad: BadRow) -> TokenizedExample | BadRow:
        for conversation, removed in without_leading_blanks(row.conversation):
            rest = _Prepared(conversation, [*row.cut, *removed], row.num_escaped)
            with suppress(BadRow):
                result = self._render_escaped(rest) if row.num_escaped else self._render_alone(rest)
                if isinstance(result, TokenizedExample):
                    return self._with_counts(result, rest)
        return bad

    def _rewrites(self, row: _Prepared) -> tuple[Rewrite, ...]:
        removed, lost = [*row.cut, *row.omitted], Counter[str]()
        places = Counter(name for name, _ in removed)
        for name, text in removed:
            lost[name] += self._num_tokens(text)
        escaped = [Rewrite(ESCAPED, row.num_escaped)] if row.num_escaped else []
        return (*escaped, *(Rewrite(name, number, lost[name]) for name, number in places.items()))

    def _num_tokens(self, text: str) -> int:
        size = self._sizes.get(text)
        if size is None:
            size = int(self.encoder.encode_batch([text])[0].ids.size)
            if len(text) < _SHORT and len(self._sizes) < _MOST_SHORT:
                self._sizes[text] = size
        return size

    def _render_row(self, row: _Prepared, conversation: Conversation) -> tuple[str, list[Span]]:
        """The text of a row as it is, or escaped, and the spans that are trained; the rest is noted in the row."""
        text, spans, row.omitted, row.turns = self._render_text(conversation)
        return text, spans

    def _render_text(self, conversation: Conversation) -> tuple[str, list[Span], list[Removal], Turns]:
        """The text, the spans that are trained, what the template does not print, and counts of the turns."""
        if conversation.is_text:
            return *framed_text(conversation, self._special_tokens, self._adds_bos), [], NO_TURNS
        by_itself = conversation.tools or conversation.is_prompted
        placed = None if by_itself else self._skeletons.render(conversation.messages)
        text, spans, removed = placed or self._render_template(conversation)
        trained, turns = self._trained_turns.of(conversation, text, spans)
        return text, trained, removed, turns

    def _render_template(self, conversation: Conversation) -> Rendered:
        text, spans = self._print(conversation)
        seen, unseen = as_printed(conversation) if self._loses_system_prompts else (conversation, [])
        removed = check_complete(seen, text, spans)
        self._shapes.check(seen)
        return Rendered(text, spans, unseen + removed + self._shapes.removals(seen))

    def _print(self, conversation: Conversation) -> tuple[str, list[Span]]:
        self._check_supported(conversation)
        apply = self._apply.prompted if conversation.is_prompted else self._apply.answers
        return apply(
            self._template_messages(conversation), list(conversation.tools) or None, self._thinks(conversation)
        )

    def _thinks(self, conversation: Conversation) -> bool | None:
        """What the template is told of a model that thinks in a row as it does in this one; None: nothing."""
        if any(m.reasoning for m in conversation.messages):
            return True if self._asks_to_think else None
        return False if self._asks_not_to_think else None

    def _template_messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The messages with reasoning and arguments in the form that the template prints."""
        messages = conversation.as_dicts()
        for i, message in enumerate(messages):
            reasoning = message.pop("reasoning_content", None)
            if reasoning is not None and self._reasoning_place:
                messages[i] = with_reasoning(message, reasoning, self._reasoning_place)
            elif reasoning is not None:
                message["content"] = inline(reasoning, message["content"])
            if self._takes_json_text:
                for call in message.get("tool_calls", ()):
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return messages

    def _check_supported(self, conversation: Conversation) -> None:
        """A template that never mentions tools would leave them out without a word."""
        for name, used in (("tools", bool(conversation.tools)), ("tool_calls", _has_calls(conversation))):
            if used and name not in self.template.own_text:
                way = "choose one with tools, such as qwen2_5, qwen3 or the tokenizer's own"
                if self.template.tool_use:
                    way = f"it is for rows without tools. Give the row its `tools`: then {TOOL_USE!r} renders it"
                raise BadRow(
                    "tools_not_in_template",
                    f"the row has {name}, which the chat template {self.template.origin!r} leaves out: {way}",
                )

    def _render_escaped(self, row: _Prepared) -> TokenizedExample | BadRow:
        """One row that spells control tokens."""
        if self._policy == "reject":
            found = self._control.spelled_in(row.conversation)
            raise BadRow("control_token_in_text", f"the text spells the control token {found!r}")
        shielded, restore = self._control.shield(row.conversation)
        return self._labeller.label(*restore(*self._render_row(row, shielded)))

    def _render_alone(self, row: _Prepared) -> TokenizedExample | BadRow:
        """One row that spells none."""
        text, spans = self._render_row(row, row.conversation)
        return self._labeller.label(text, self.encoder.encode_batch([text])[0], spans)


def _groups(texts: list[str]) -> Iterator[Span]:
    """First and one past the last of the texts that are encoded in one call: thousands, since freeing the encodings of
    a few hundred texts before making the next ones costs a fifth of the time, but not more than memory allows."""
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text) if text.isascii() else 3 * len(text)
        if size >= _BYTES_PER_CALL or end == len(texts):
            yield start, end
            start, size = end, 0


def _has_calls(conversation: Conversation) -> bool:
    return any(m.tool_calls for m in conversation.messages)
