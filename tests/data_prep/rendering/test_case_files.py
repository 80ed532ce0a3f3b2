"""Small files made after public bug reports: what the preparation makes of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl

from data_prep.conversation import BadRow, Conversation
from data_prep.recipe import Source
from data_prep.rendering.chat_templates import GENERATION_MARK, ChatTemplate, resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from data_prep.sources.form_recognition import resolve_form
from data_prep.sources.row_forms import to_conversation
from data_prep.sources.slices import read_slice, slice_source
from data_prep.tokenization.tokenizer import load_tokenizer

HARMONY = ["<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "<|end|>"]
TRL_GPT_OSS = Path(trl.__file__).parent / "chat_templates/gptoss_training.jinja"
DONE = "3 degrees<|im_end|>"
WEATHER = '<tool_call>weather {"city": "Oslo", "n": 12345678901234567890123, "f": 1.0, "z": null, "u": "é<b>&\'"}'
IN_OSLO = '<tool_call>weather {"city": "Oslo"}</tool_call><|im_end|>'
IN_A = '<tool_call>weather {"city": "A"}</tool_call>'
SAID = "<|channel|>analysis<|message|>\nsix sevens\n<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"

# File and template: what is trained of each row, or why it is dropped; and how often its texts were rewritten.
CASES = {
    ("01_tool_args.jsonl", "57_repr.jinja"): [
        f"{WEATHER}</tool_call><|im_end|>{DONE}",
        f"{WEATHER}</tool_call><|im_end|>{DONE}",
        f"Let me look.{IN_OSLO}{DONE}",  # a tool result that is an object
        "tool_call",  # arguments that are cut off
        f'a{IN_A}<tool_call>weather {{"city": "B"}}</tool_call><|im_end|>done<|im_end|>',
        f"{IN_A}<|im_end|>done<|im_end|>",
    ],
    ("09_think.jsonl", "qwen3"): [
        "<think>\nadd\n</think>\n\n2<|im_end|><think>\nadd more\n</think>\n\n4<|im_end|>",
        "<think>\nadd\n</think>\n\n2<|im_end|><think>\nadd3\n</think>\n\n6<|im_end|>",
        "<think>\nsum it\n</think>\n\n10<|im_end|>",
        "<think>\nt6\n</think>\n\n12<|im_end|>",
        "<think>\nt7\n</think>\n\n14<|im_end|>",
        "16<|im_end|>",
        "unclosed_reasoning",
    ],
    ("10_lead.jsonl", "qwen3"): [
        ("Hello world<|im_end|>", {"answer_start_trimmed": 1}),
        "    return x\n\n<|im_end|>",
        " Paris<|im_end|>",
    ],
    ("10_lead.jsonl", "chatml"): [
        ("Hello world<|im_end|>", {"answer_start_trimmed": 1}),
        "    return x\n\n<|im_end|>",
        " Paris<|im_end|>",
    ],
    ("52_think_inline.jsonl", "qwen3"): ["<think>\nsix sevens\n</think>\n\n42<|im_end|>"],
    ("52_think_inline.jsonl", str(TRL_GPT_OSS)): [SAID],
    ("53_endoftext.jsonl", "qwen3"): [
        (f"{text}<|im_end|>", {"end_tokens_stripped": 1}) for text in ("Hi there.", "Bye.", "X.")
    ],
    ("59_markup.jsonl", "qwen3"): [("Use <tool_call>{...}</tool_call> and </think>.<|im_end|>", {"escaped": 5})],
}


@pytest.fixture(scope="module")
def cases(shared_data) -> Path:
    folder = shared_data.parent / "cases/data"
    if not folder.is_dir():
        pytest.skip(f"no case files at {folder}")
    return folder


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    """Qwen3's, with the tokens of another template too: they change no text that does not spell them."""
    tokenizer = load_tokenizer(str(shared_data / "tokenizers/qwen3"))
    tokenizer.add_special_tokens({"additional_special_tokens": HARMONY})
    return tokenizer


def renderer_of(tokenizer, cases: Path, template: str) -> Renderer:
    path = cases / template  # an absolute path stays
    if path.suffix != ".jinja":
        return Renderer(tokenizer, resolve_chat_template(template, tokenizer))
    text = path.read_text(encoding="utf-8")
    return Renderer(tokenizer, ChatTemplate(text, template, has_marks=bool(GENERATION_MARK.search(text))))


def conversations(path: Path) -> list[Conversation | BadRow]:
    source = Source(name="s", path=str(path))
    rows = [row for piece in slice_source(source, 100) for row in read_slice(source, piece)]
    found = []
    for row in rows:
        try:
            found.append(to_conversation(resolve_form(source, rows), row))
        except BadRow as bad:
            found.append(bad)
    return found


@pytest.mark.parametrize(("file", "template"), CASES, ids=lambda value: Path(value).stem)
def test_what_is_made_of_each_row(cases, tokenizer, file, template):
    renderer = renderer_of(tokenizer, cases, template)
    outcomes = []
    for conversation in conversations(cases / file):
        (result,) = [conversation] if isinstance(conversation, BadRow) else renderer.render([conversation])
        if isinstance(result, BadRow):
            outcomes.append(result.reason)
            continue
        trained = tokenizer.decode([i for i in result.labels.tolist() if i != IGNORE_INDEX])
        places = {rewrite.name: rewrite.places for rewrite in result.rewrites}
        outcomes.append((trained, places) if places else trained)
    assert outcomes == CASES[file, template]


@pytest.mark.parametrize(
    ("template", "message"),
    [("46_gen.jinja", "never stops"), ("46_nospecial.jinja", "not in a control token")],
)
def test_templates_that_train_no_end_are_refused(cases, tokenizer, template, message):
    with pytest.raises(ValueError, match=message):
        renderer_of(tokenizer, cases, template)
