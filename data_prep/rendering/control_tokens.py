"""Control tokens spelled in content: they are encoded as the plain text they are, never as the control id.

A tokenizer turns `<|im_end|>` into the control id wherever it stands, so a row that quotes a chat format could end its
own turn: prompt injection into the training data. The way out, exact for any tokenizer: a sentinel character is put
inside the spelled token before the template renders it, which sets the template's own control tokens apart from the
quoted ones. Then the sentinels go, each control token of the template is replaced by a stand-in that the tokenizer
matches as it matches the token (an added token with the same flags, but not "special"), and the text is encoded with
`encode_special_tokens`, under which special tokens are plain text. Last, the stand-ins' ids become the control ids.
Added tokens that are not special but control text too (`<tool_call>`) are made special in the copy that encodes so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.conversation import BadRow, Conversation, ToolCall
from data_prep.tokenization.encoded_text import ByteTokens, LooseSpan, OffsetTokens, Span
from data_prep.tokenization.proof_texts import hard_texts

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

    from data_prep.tokenization.encoded_text import EncodedText
    from data_prep.tokenization.text_encoder import TextEncoder

Restore = Callable[[str, list[Span]], "tuple[str, EncodedText, list[Span]]"]
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Supplementary Private Use Area-A: assigned to nobody


class ControlTokens:
    """Finds control tokens spelled in content and encodes them as plain text.

    Args:
        control_ids: text -> id of the tokens that content must not turn into.
    """

    def __init__(self, encoder: TextEncoder, control_ids: dict[str, int]):
        self._ids = control_ids
        self._encoder = encoder
        longest_first = sorted(control_ids, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._is_fast = False
        self._stand_ins: tuple[Tokenizer, dict[str, str]] | None = None

    @property
    def tokens(self) -> Collection[str]:
        """The tokens that content must not turn into."""
        return self._ids.keys()

    def use_fast(self, sample: Iterable[str]) -> None:
        """Encode with the fast encoder from now on, if it is proven to take these tokens for text as the copy of the
        tokenizer does that each process would have to make.

        Args:
            sample: texts of the run itself, on which it has to agree as well.
        """
        texts = [*hard_texts(self._ids), *self._ids, *sample]
        self._is_fast = self._encoder.encodes_special_as_text(texts, self._plain_encoder()[0])

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def spelled_in(self, conversation: Conversation) -> str | None:
        """The first control token that a message spells, if any."""
        for text in conversation.strings():
            if found := self._pattern.search(text):
                return found[0]
        return None

    def num_spelled(self, conversation: Conversation) -> int:
        """How many control tokens the messages and tools spell."""
        return sum(len(self._pattern.findall(text)) for text in conversation.strings())

    def shield(self, conversation: Conversation) -> tuple[Conversation, Restore]:
        """The conversation with sentinels in spelled control tokens, and the function that encodes its rendering."""
        sentinel = _unused_character(conversation)
        shielded = _map_strings(conversation, lambda text: self._shield_text(text, sentinel))
        return shielded, lambda text, spans: self._encode(text, spans, sentinel)

    def _shield_text(self, text: str, sentinel: str) -> str:
        # Again until none is left: what stands behind a broken-up token may now begin another match.
        while self._pattern.search(text):
            text = self._pattern.sub(lambda found: found[0][0] + sentinel + found[0][1:], text)
        return text

    def _encode(self, text: str, spans: list[Span], sentinel: str) -> tuple[str, EncodedText, list[Span]]:
        if self._is_fast and (encoded := self._encode_between(text, spans, sentinel)):
            return encoded
        encoder, stand_in = self._plain_encoder()
        pieces: list[str] = []
        moved: dict[int, int] = {}  # character position in `text` -> in the text that is encoded
        control_ids: list[int] = []
        cursor = length = 0
        for found in re.finditer(f"{re.escape(sentinel)}|{self._pattern.pattern}", text):
            length = _copy(text, cursor, found.start(), pieces, length, moved)
            if found[0] != sentinel:
                replacement = stand_in[found[0]]
                pieces.append(replacement)
                control_ids.append(self._ids[found[0]])
                length += len(replacement)
            cursor = found.end()
        length = _copy(text, cursor, len(text), pieces, length, moved)
        moved[len(text)] = length
        plain = "".join(pieces)
        encoding = encoder.encode(plain, add_special_tokens=False)
        ids = _put_back(encoding.ids, {encoder.token_to_id(s) for s in stand_in.values()}, control_ids)
        return plain, OffsetTokens(encoding, ids), [_moved(span, moved) for span in spans]

    def _encode_between(
        self, text: str, spans: list[Span], sentinel: str
    ) -> tuple[str, EncodedText, list[Span]] | None:
        """By the fast encoder: what stands between the template's own control tokens, as nothing is merged across one;
        None if it leaves some of it to `tokenizers`."""
        parts = re.split(f"({self._pattern.pattern})", text)
        encoded = self._encoder.encode_special_as_text([part.replace(sentinel, "") for part in parts[::2]])
        between = [tokens for tokens in encoded if isinstance(tokens, ByteTokens)]
        if len(between) < len(encoded):
            return None
        own = [(len(token.encode()), self._ids[token]) for token in parts[1::2]]
        plain = text.replace(sentinel, "")
        return plain, _joined(plain, between, own), [_without(sentinel, text, span) for span in spans]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stand_ins": None}  # made again where it is needed

    def _plain_encoder(self) -> tuple[Tokenizer, dict[str, str]]:
        """A copy of the tokenizer with one stand-in per combination of matching flags, made when first needed."""
        if self._stand_ins is None:
            from tokenizers import AddedToken

            encoder = _special_as_text(self._encoder.backend, self._ids)
            names: dict[tuple[bool, ...], str] = {}
            stand_in = {}
            for token in encoder.get_added_tokens_decoder().values():
                if token.special:
                    name = names.setdefault(_flags(token), f"\U0010fffd{len(names)}\U0010fffd")
                    stand_in[token.content] = name
            for (lstrip, rstrip, single_word, normalized), name in names.items():
                encoder.add_tokens(
                    [
                        AddedToken(
                            name,
                            lstrip=lstrip,
                            rstrip=rstrip,
                            single_word=single_word,
                            normalized=normalized,
                            special=False,
                        )
                    ]
                )
            self._stand_ins = encoder, stand_in
        return self._stand_ins


def _map_strings(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    def deep(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return {change(key): deep(item) for key, item in value.items()}
        return [deep(item) for item in value] if isinstance(value, list) else value

    messages = tuple(
        replace(
            m,
            content=change(m.content),
            reasoning=None if m.reasoning is None else change(m.reasoning),
            tool_calls=tuple(ToolCall(change(c.name), deep(c.arguments)) for c in m.tool_calls),
        )
        for m in conversation.messages
    )
    return replace(conversation, messages=messages, tools=tuple(deep(list(conversation.tools))))


def _special_as_text(backend: Tokenizer, special: Collection[str]) -> Tokenizer:
    """A copy that encodes special tokens as text, and to which these added tokens are special too. It shares the model:
    loading a large vocabulary takes seconds."""
    from tokenizers import Tokenizer

    copy: Any = Tokenizer(backend.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor"):  # the last one may trim offsets
        if (step := getattr(backend, name)) is not None:
            setattr(copy, name, step)
    added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
    for token in added:
        token.special |= token.content in special
    copy.add_tokens(added)
    copy.encode_special_tokens = True
    return copy


def _joined(text: str, between: list[ByteTokens], own: list[tuple[int, int]]) -> ByteTokens:
    """The tokens of a text from those between its control tokens.

    Args:
        own: bytes and id of each control token.
    """
    ids, ends, num_bytes = [between[0].ids], [between[0].ends], len(between[0].text.encode())
    for (size, number), tokens in zip(own, between[1:], strict=True):
        num_bytes += size
        ids += (np.array([number]), tokens.ids)
        ends += (np.array([num_bytes]), tokens.ends + num_bytes)
        num_bytes += len(tokens.text.encode())
    return ByteTokens(text, np.concatenate(ids).astype(np.int32), np.concatenate(ends).astype(np.int64))


def _without(sentinel: str, text: str, span: Span) -> Span:
    """Where the span is once the sentinels are gone."""
    start, end = (position - text.count(sentinel, 0, position) for position in span)
    return LooseSpan(start, end) if isinstance(span, LooseSpan) else (start, end)


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return token.lstrip, token.rstrip, token.single_word, token.normalized


def _copy(text: str, start: int, end: int, pieces: list[str], length: int, moved: dict[int, int]) -> int:
    """Append text[start:end]; note where its positions went; the new length."""
    pieces.append(text[start:end])
    for position in range(start, end + 1):
        moved[position] = length + position - start
    return length + end - start


def _moved(span: Span, moved: dict[int, int]) -> Span:
    start, end = (moved[position] for position in span)
    return LooseSpan(start, end) if isinstance(span, LooseSpan) else (start, end)


def _put_back(ids: list[int], stand_in_ids: set[int | None], control_ids: list[int]) -> list[int]:
    remaining = iter(control_ids)
    restored = [next(remaining) if i in stand_in_ids else i for i in ids]
    if next(remaining, None) is not None:
        raise BadRow("control_token_in_text", "a control token of the template was lost while escaping the text's own")
    return restored


def _unused_character(conversation: Conversation) -> str:
    used = {c for text in conversation.strings() for c in text}
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    if "\U0010fffd" not in used and (character := next(free, None)):
        return character
    raise BadRow(
        "control_token_in_text", "the text spells a control token and uses the private characters needed to escape it"
    )
