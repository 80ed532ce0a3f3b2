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

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data_prep.conversation import BadRow, Conversation, ToolCall
from data_prep.tokenization.encoded_text import LooseSpan, OffsetTokens, Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
        self._stand_ins: tuple[Tokenizer, dict[str, str]] | None = None

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stand_ins": None}  # made again where it is needed

    def _plain_encoder(self) -> tuple[Tokenizer, dict[str, str]]:
        """A copy of the tokenizer with one stand-in per combination of matching flags, made when first needed."""
        if self._stand_ins is None:
            from tokenizers import AddedToken, Tokenizer

            before, added_tokens, after = _split_added_tokens(self._encoder.serialised)
            for token in added_tokens:
                token["special"] |= token["content"] in self._ids
            encoder = Tokenizer.from_str(f"{before}{json.dumps(added_tokens)}{after}")
            encoder.encode_special_tokens = True
            names: dict[tuple[bool, ...], str] = {}
            stand_in = {}
            for token in added_tokens:
                if token["special"]:
                    name = names.setdefault(_flags(token), f"\U0010fffd{len(names)}\U0010fffd")
                    stand_in[token["content"]] = name
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


def _split_added_tokens(serialised: str) -> tuple[str, list[dict[str, Any]], str]:
    """A tokenizer's JSON around its added tokens, and these. The rest, with the vocabulary, is not read: that takes
    seconds where it is large."""
    key = '"added_tokens":'
    start = serialised.index(key) + len(key)
    start += len(serialised[start : start + 100]) - len(serialised[start : start + 100].lstrip())
    added_tokens, end = json.JSONDecoder().raw_decode(serialised, start)
    return serialised[:start], added_tokens, serialised[end:]


def _flags(token: dict[str, Any]) -> tuple[bool, ...]:
    return token["lstrip"], token["rstrip"], token["single_word"], token["normalized"]


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
