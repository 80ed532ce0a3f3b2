"""Ids and labels with real tokenizers, written out from the published vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.chat_templates import (
    TEMPLATE_DIR,
    resolve_chat_template,
)
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from data_prep.tokenization.tokenizer import load_tokenizer, special_token_ids
from tests.support.word_tokenizer import (
    TOOLS,
    TURNS,
    WITH_TOOLS,
    render,
)

# Real tokenizers, ids written out from the published vocabularies.
# fmt: off
REAL = {
    ("gemma3", "gemma"): (
        [2, 105, 2364, 107, 10979, 106, 107, 105, 4368, 107, 9259, 236888, 106, 107, 105, 2364, 107, 238165,
         239888, 106, 107, 105, 4368, 107, 236777, 236789, 236757, 5851, 236761, 106, 107],
        [9259, 236888, 106, 236777, 236789, 236757, 5851, 236761, 106],
    ),
    ("qwen3", "chatml"): (
        [151644, 872, 198, 13048, 151645, 198, 151644, 77091, 198, 9707, 0, 151645, 198, 151644, 872, 198, 126246,
         144370, 151645, 198, 151644, 77091, 198, 40, 2776, 6915, 13, 151645, 198],
        [9707, 0, 151645, 40, 2776, 6915, 13, 151645],
    ),
}
# fmt: on
REAL_TURNS = (
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "안녕"),
    Message("assistant", "I'm fine."),
)


@pytest.mark.parametrize(("name", "template"), REAL)
def test_exact_ids_with_real_tokenizers(shared_data, name, template):
    ids, trained = REAL[name, template]
    example = render(load_tokenizer(str(shared_data / "tokenizers" / name)), template, REAL_TURNS)
    assert example.input_ids.tolist() == ids
    assert [i for i in example.labels.tolist() if i != IGNORE_INDEX] == trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "template", "end"), [("gemma3", "gemma", "<end_of_turn>"), ("qwen3", "chatml", "<|im_end|>")]
)
def test_real_rows_decode_to_the_answers(shared_data, name, template, end):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / name))
    special = set(special_token_ids(tokenizer).values())
    renderer = Renderer(tokenizer, resolve_chat_template(template, tokenizer))
    lines = (shared_data / "text/ko/logickor_42_messages.jsonl").read_text(encoding="utf-8").splitlines()
    rows = json.loads((shared_data / "text/en/alpaca_52k.json").read_text(encoding="utf-8"))[:1500]
    conversations = [[(m["role"], m["content"]) for m in json.loads(line)["messages"]] for line in lines]
    conversations += [
        [("user", r["instruction"] + r["input"]), ("assistant", r["output"])] for r in rows if r["output"].strip()
    ]
    built = [Conversation(tuple(Message(*m) for m in c), "s", i) for i, c in enumerate(conversations)]
    for conversation, example in zip(built, renderer.render(built), strict=True):
        assert not isinstance(example, BadRow), example
        answers = [m.content.strip() for m in conversation.messages if m.role == "assistant"]
        trained = [i for i in example.labels.tolist() if i != IGNORE_INDEX]
        assert tokenizer.decode(trained) == "".join(answer + end for answer in answers)
        assert sum(i in special for i in trained) == len(answers)
        own = tokenizer.apply_chat_template(
            conversation.as_dicts(), chat_template=renderer.template.text, tokenize=True
        )
        assert example.input_ids.tolist() == own["input_ids"]


@pytest.mark.parametrize(
    ("built_in", "trl_name"),
    [("qwen2_5", "qwen2_5"), ("qwen3", "qwen3"), ("gemma", "gemma3"), ("llama3", "llama3"), ("phi", "phi3")],
)
def test_built_in_templates_read_as_the_published_ones(built_in, trl_name, tiny_tokenizer):
    """The text is that of TRL's copies of the published templates, on a conversation with a system prompt."""
    import trl

    published = (Path(trl.__file__).parent / f"chat_templates/{trl_name}_training.jinja").read_text()
    own = (
        (TEMPLATE_DIR / f"{built_in}.jinja")
        .read_text()
        .replace("__BOS__", "bos_token" if built_in in ("gemma", "llama3") else "''")
        .replace("__EMPTY_REASONING__", "true")
    )
    turns = WITH_TOOLS if built_in.startswith("qwen") else TURNS
    tools = list(TOOLS) if built_in.startswith("qwen") else None
    messages = [m.as_dict() for m in turns]
    texts = [
        tiny_tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False, eos_token="")
        for template in (own, published)
    ]
    assert texts[0] == texts[1]
