"""Masks against an independent, slow reference: each turn rendered and tokenized by transformers, one by one."""

from __future__ import annotations

import pytest

from data_prep.conversation import BadRow, Conversation
from data_prep.recipe import Source
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from data_prep.sources.form_recognition import resolve_form
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import read_slice, slice_source
from data_prep.tokenization.tokenizer import load_tokenizer

FILES = [  # file, rows at most
    ("chat/fastchat_dummy_500_sharegpt.json", 500),
    ("chat/glaive_toolcall_en_sharegpt.json", 300),
    ("chat/kto_en_messages.json", 300),
    ("chat/llamafactory_v1_sft_messages.jsonl", 500),
    ("chat/oasst_100_messages.jsonl", 100),
    ("chat/reason_tool_use_50_messages.jsonl", 50),
    ("chat/sharegpt_raw_5.json", 5),
    ("ko/kochatgpt_439_sharegpt.json", 439),
    ("ko/logickor_42_messages.jsonl", 42),
    ("ko/koalpaca_v1_11432.json", 1300),
    ("ko/koalpaca_v1.1_medical_1908.jsonl", 600),
    ("ko/songys_chatbot_11823.csv", 900),
]
LABELLED = {"ignore": ["label"]}  # a column that is refused unless the recipe leaves it out
STATED = {"chat/kto_en_messages.json": LABELLED, "ko/songys_chatbot_11823.csv": LABELLED}
MODELS = [
    ("gemma3", "gemma"),
    ("qwen3", "qwen3"),
    ("llama2", "llama2"),
    ("mistral_v3_spm", "mistral"),
    ("qwen3", "qwen2_5"),
]


@pytest.fixture(scope="module")
def conversations(shared_data):
    found = []
    for name, most in FILES:
        source = Source(name="s", path=str(shared_data / "text" / name), **STATED.get(name, {}))
        rows = [row for piece in slice_source(source, 10_000) for row in read_slice(source, piece)][:most]
        resolved = resolve_form(source, rows[:100])
        for row in rows:
            try:
                found.append(to_conversation(resolved, row))
            except BadRow:
                continue
    assert len(found) >= 5000
    return found


def reference(tokenizer, template: str, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Ids and labels from the prompts and answers of each turn alone, as a server would tokenize them."""

    def tokens(messages, **options):
        tools = list(conversation.tools) or None
        return tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template, return_dict=False, **options
        )

    messages = conversation.as_dicts()
    whole = tokens(messages)
    labels = [IGNORE_INDEX] * len(whole)
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or conversation.messages[i].train is False:
            continue
        thinks = bool(conversation.messages[i].reasoning)
        prompt = tokens(messages[:i], add_generation_prompt=True, enable_thinking=thinks)
        until = tokens(messages[: i + 1]) if i + 1 < len(messages) else whole
        assert until[: len(prompt)] == prompt and whole[: len(prompt)] == prompt
        end = max(p for p in range(len(prompt), len(until)) if until[p] in tokenizer.all_special_ids)
        labels[len(prompt) : end + 1] = until[len(prompt) : end + 1]
    return whole, labels


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MODELS)), ids=[t for _, t in MODELS])
def test_no_difference_on_real_rows(number, conversations, shared_data):
    name, template = MODELS[number]
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / name))
    renderer = Renderer(tokenizer, resolve_chat_template(template, tokenizer))
    both = (number, (number + 1) % len(MODELS))  # two models for each row
    mine = [c for i, c in enumerate(conversations) if i % len(MODELS) in both]
    plain = [c for c in mine if renderer._control.spelled_in(c) is None]  # transformers would obey those
    if "reasoning_content" not in renderer.template.text:
        plain = [c for c in plain if all(m.reasoning is None for m in c.messages)]  # ours puts it into the content
    if template == "qwen3":
        assert renderer.use_fast_encoder(plain[:100]) is None
    compared = 0
    for conversation, example in zip(plain, renderer.render(plain), strict=True):
        if isinstance(example, BadRow):
            assert example.reason in ("tools_not_in_template", "template_refused", "no_trained_tokens"), example
            continue
        ids, labels = reference(tokenizer, renderer.template.text, conversation)
        assert example.input_ids.tolist() == ids, conversation
        assert example.labels.tolist() == labels, conversation
        compared += 1
    assert compared > (1900 if template.startswith("qwen") else 1700)  # Mistral, Llama and Gemma have no tools
