"""train.serving.chat_model: prompts for a model that shall think first, or shall not."""

from __future__ import annotations

import copy

import pytest

from data_prep.rendering.applied_template import THINKING_NAMES as RENDERED_WITH
from train.serving.chat_model import THINKING_NAMES, ChatModel

QWEN_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_a_model_is_asked_to_think_or_not_to(tiny_tokenizer):
    tokenizer, chat = copy.deepcopy(tiny_tokenizer), [{"role": "user", "content": "Hi"}]
    tokenizer.chat_template = QWEN_PROMPT
    model = ChatModel("m", None, tokenizer)
    usual, thinks, silent = (model.prompt_ids(chat, None, asked) for asked in (None, True, False))
    assert usual == thinks and tokenizer.decode(silent) == tokenizer.decode(usual) + "<think>\n\n</think>\n\n"


def test_a_template_that_cannot_ask_is_named(tiny_tokenizer):
    chat = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match=r"m: --enable_thinking: .*the same prompt for both"):
        ChatModel("m", None, tiny_tokenizer).prompt_ids(chat, None, False)


def test_thinking_has_the_names_that_the_data_was_rendered_with():
    assert THINKING_NAMES == RENDERED_WITH
