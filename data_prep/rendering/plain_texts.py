"""Plain texts, which no chat template renders: all of the text is trained, and the token that ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_prep.conversation import BadRow, Conversation
from data_prep.tokenization.encoded_text import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself begins each text with the BOS token: then the model was trained so."""
    return tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]


def framed_text(conversation: Conversation, special_tokens: dict[str, Any], adds_bos: bool) -> tuple[str, list[Span]]:
    """The text between the BOS token, if the tokenizer adds one, and the EOS token; and the span that is trained.

    Raises:
        BadRow: the tokenizer has no EOS token, and the model would not learn where a text ends.
    """
    if not special_tokens.get("eos_token"):
        raise BadRow("no_end_token", "the tokenizer has no EOS token, which has to end a plain text: give it one")
    begin = special_tokens["bos_token"] if adds_bos else ""
    text = f"{begin}{conversation.messages[0].content}{special_tokens['eos_token']}"
    return text, [(len(begin), len(text))]
