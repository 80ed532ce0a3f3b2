"""End tokens that an answer spells out: data sets that were made by rendering a template hold them as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from data_prep.conversation import BadRow, Message
from data_prep.rendering.rewrites import END_TOKENS, Removal

WELL_KNOWN = (
    "<|endoftext|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|EOT|>",
    "<|END_OF_TURN_TOKEN|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[EOS]",
)
_STRUCK, _STRUCK_END = "<s>", "</s>"  # HTML, too


class EndTokens:
    """Finds end tokens that answers end in.

    Args:
        own: the end tokens of the tokenizer and the template; the well-known ones are added.
    """

    def __init__(self, own: Iterable[str]):
        self._tokens = (*dict.fromkeys((*own, *WELL_KNOWN)),)
        self._last_characters = frozenset(token[-1] for token in self._tokens)

    def may_end(self, content: str) -> bool:
        """Whether a content ends in one, white space aside; `strip` looks at it more closely."""
        last = content[-1:]
        return (last in self._last_characters or last.isspace()) and content.rstrip().endswith(self._tokens)

    def strip(self, message: Message) -> tuple[Message, list[Removal]]:
        """The answer without the end tokens and the white space around them, and each of them.

        Raises:
            BadRow: nothing else is in the answer.
        """
        content, removed = message.content, []
        while token := self._last(stripped := content.rstrip()):
            content = stripped.removesuffix(token).rstrip()
            removed.append(Removal(END_TOKENS, token))
        if not removed:
            return message, []
        if not content and not message.tool_calls:
            raise BadRow("empty_output", f"nothing but an end token is in the answer {message.content[:60]!r}")
        return replace(message, content=content), removed

    def _last(self, content: str) -> str | None:
        """The end token that a content ends in; not `</s>` where it ends what an HTML `<s>` has struck out."""
        token = next((t for t in self._tokens if content.endswith(t)), None)
        if token != _STRUCK_END:
            return token
        before = content.removeprefix(_STRUCK)
        is_html = before.count(_STRUCK) >= before.count(_STRUCK_END)
        return None if is_html else token
