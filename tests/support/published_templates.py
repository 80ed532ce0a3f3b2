"""Chat templates as model makers publish them, which TRL carries, with tokenizers that hold their control tokens."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.tool_use_renderer import renderer_for

FOLDER = Path(trl.__file__).parent / "chat_templates"
_CONTROL = re.compile(r"<\|?[^<>\s'\"{}()=]{1,40}\|?>|\[/?[A-Z_]+\]|<｜[^｜]+｜>")
_PLAIN = re.compile(r"</?(tool|function|parameter|name|IMPORTANT|description|type|required|think)[a-z_-]*>")
_ENDS = ("<|im_end|>", "<｜end▁of▁sentence｜>", "<end_of_turn>", "<|return|>", "<turn|>", "<|eot_id|>", "<|end|>")


def published(name: str) -> str:
    """The template, unless it is TRL's own variant for training."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def tokenizer_for(text: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the control tokens that the template names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = sorted({token for token in _CONTROL.findall(text) if not _PLAIN.fullmatch(token)} | {"<bos>", "<eos>"})
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    end = next((token for token in _ENDS if token in special), "<eos>")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, bos_token="<bos>", pad_token="<eos>")
    made.chat_template = text
    return made


def renderer_of(template: str | dict[str, str], **options) -> Renderer:
    """Renders rows by this template as a tokenizer's own."""
    text = template if isinstance(template, str) else "".join(template.values())
    tokenizer = tokenizer_for(text + "{# <|user|> <|system|> <|assistant|> <|observation|> #}")
    tokenizer.chat_template = template
    return renderer_for(tokenizer, resolve_chat_template("tokenizer", tokenizer), **options)
