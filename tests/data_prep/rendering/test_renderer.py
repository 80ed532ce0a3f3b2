# ruff: noqa: E501 (ids and texts stand on one line each)
"""Templates and masks: exact ids by hand, against real tokenizers, and the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import (
    ChatTemplate,
    built_in_names,
    resolve_chat_template,
)
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from data_prep.tokenization.tokenizer import load_tokenizer
from tests.support.word_tokenizer import (
    EOS,
    IM_END,
    TURNS,
    UNK,
    make_word_tokenizer,
    render,
    trained_text,
)

# fmt: off
BY_HAND = {
    # text: (ids, positions of the trained ones)
    "chatml": (
        "<s><|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long<|im_end|>\n",
        [1, 3, 10, 22, 14, 24, 15, 4, 22, 3, 11, 22, 16, 4, 22, 3, 12, 22, 17, 21, 4, 22,
         3, 11, 22, 18, 4, 22, 3, 12, 22, 19, 24, 20, 4, 22],
        [18, 19, 20, 31, 32, 33, 34],
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nSo long<|eot_id|>",
        [1, 5, 10, 6, 23, 14, 24, 15, 7, 5, 11, 6, 23, 16, 7, 5, 12, 6, 23, 17, 21, 7, 5, 11, 6, 23, 18, 7,
         5, 12, 6, 23, 19, 24, 20, 7],
        [19, 20, 21, 32, 33, 34, 35],
    ),
    "gemma": (
        "<s><start_of_turn>user\nBe kind\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nSo long<end_of_turn>\n",
        [1, 8, 11, 22, 14, 24, 15, 23, 16, 9, 22, 8, 13, 22, 17, 21, 9, 22, 8, 11, 22, 18, 9, 22,
         8, 13, 22, 19, 24, 20, 9, 22],
        [14, 15, 16, 27, 28, 29, 30],
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST] So long </s>",
        [1, 27, 37, 28, 24, 30, 38, 31, 22, 14, 24, 15, 22, 30, 29, 38, 31, 23, 16, 24, 27, 29, 37, 28,
         24, 17, 21, 24, 2, 1, 27, 37, 28, 24, 18, 24, 27, 29, 37, 28, 24, 19, 24, 20, 24, 2],
        [24, 25, 26, 27, 28, 40, 41, 42, 43, 44, 45],
    ),
    "alpaca": (
        "<s>Be kind\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n### Response:\nSo long</s>",
        [1, 14, 24, 15, 23, 25, 24, 35, 33, 16, 23, 25, 24, 36, 33, 17, 21, 2, 23, 25, 24, 35, 33, 18, 23,
         25, 24, 36, 33, 19, 24, 20, 2],
        [15, 16, 17, 29, 30, 31, 32],
    ),
    "qwen2_5": (
        "<s><|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long<|im_end|>\n",
        [1, 3, 10, 22, 14, 24, 15, 4, 22, 3, 11, 22, 16, 4, 22, 3, 12, 22, 17, 21, 4, 22,
         3, 11, 22, 18, 4, 22, 3, 12, 22, 19, 24, 20, 4, 22],
        [18, 19, 20, 31, 32, 33, 34],
    ),
    "qwen3": (
        "<s><|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>"
        "\n\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSo long<|im_end|>\n",
        [1, 3, 10, 22, 14, 24, 15, 4, 22, 3, 11, 22, 16, 4, 22, 3, 12, 22, 54, 23, 55, 23, 17, 21, 4, 22,
         3, 11, 22, 18, 4, 22, 3, 12, 22, 54, 23, 55, 23, 19, 24, 20, 4, 22],
        [22, 23, 24, 39, 40, 41, 42],
    ),
    "mistral": (
        "<s>[INST] Be kind\n\nHi[/INST] Hello.</s>[INST] Bye[/INST] So long</s>",
        [1, 48, 24, 14, 24, 15, 23, 16, 49, 24, 17, 21, 2, 48, 24, 18, 49, 24, 19, 24, 20, 2],
        [9, 10, 11, 12, 17, 18, 19, 20, 21],
    ),
    "phi": (
        "<s><|system|>\nBe kind<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n"
        "<|assistant|>\nSo long<|end|>\n",
        [1, 50, 22, 14, 24, 15, 53, 22, 51, 22, 16, 53, 22, 52, 22, 17, 21, 53, 22, 51, 22, 18, 53, 22,
         52, 22, 19, 24, 20, 53, 22],
        [15, 16, 17, 26, 27, 28, 29],
    ),
}
# fmt: on


@pytest.fixture
def fitting(template, word_tokenizer, wider_tokenizer):
    """[INST] is plain text to Llama 2 and a control token to Mistral, so there are two tokenizers."""
    return wider_tokenizer if template in ("mistral", "phi", "qwen3") else word_tokenizer


@pytest.mark.parametrize("template", built_in_names())
def test_exact_ids_by_hand(fitting, template):
    text, ids, trained = BY_HAND[template]
    example = render(fitting, template)
    assert example.input_ids.tolist() == ids
    assert [i for i, label in enumerate(example.labels) if label != IGNORE_INDEX] == trained
    assert all(example.labels[i] == example.input_ids[i] for i in trained)
    assert fitting.decode(ids) == text
    assert UNK not in ids


@pytest.mark.parametrize("template", built_in_names())
def test_rendered_text_is_the_templates_own(fitting, template):
    resolved = resolve_chat_template(template, fitting)
    messages = [m.as_dict() for m in TURNS]
    own = fitting.apply_chat_template(messages, chat_template=resolved.text, tokenize=False)
    assert own == BY_HAND[template][0]
    # What is asked at inference of a model that shall not think is exactly what stands before the trained tokens.
    prompt = fitting.apply_chat_template(
        messages[:-1],
        chat_template=resolved.text,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert own.startswith(prompt)
    _, ids, trained = BY_HAND[template]
    first_of_last_turn = next(i for i in reversed(trained) if i - 1 not in trained)
    assert fitting.decode(ids[:first_of_last_turn]) == prompt


@pytest.mark.parametrize("template", built_in_names())
def test_trained_text_is_the_answers_and_their_ends(fitting, template):
    example = render(fitting, template)
    ends = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi": "<|end|>"}
    ends |= dict.fromkeys(("chatml", "qwen2_5", "qwen3"), "<|im_end|>")
    before = {"llama2": " ", "mistral": " "}.get(template, "")
    after = (" " if template == "llama2" else "") + ends.get(template, "</s>")
    expected = "".join(f"{before}{answer}{after}" for answer in ("Hello.", "So long"))
    assert fitting.decode([i for i in example.labels.tolist() if i != IGNORE_INDEX]) == expected


def test_no_bos_for_a_tokenizer_that_adds_none(tiny_tokenizer):
    example = render(tiny_tokenizer, "chatml")
    assert tiny_tokenizer.bos_token_id not in example.input_ids.tolist()


def test_padding_and_truncation_of_a_tokenizer_json_are_switched_off():
    tokenizer = make_word_tokenizer([], [])
    tokenizer.backend_tokenizer.enable_padding(pad_id=EOS, pad_token="</s>")
    tokenizer.backend_tokenizer.enable_truncation(4)
    renderer = Renderer(tokenizer, ChatTemplate(UNMARKED + PROMPT, "mine", has_marks=False))
    examples = renderer.render([Conversation(turns, "s", 0) for turns in (TURNS, TURNS[1:3])])
    assert [tokenizer.decode(e.input_ids[-2:]) for e in examples] == ["<|im_end|>\n"] * 2
    assert [e.input_ids.size for e in examples] == [35, 13]


MARKED = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- 'model' + SEP }}{%- generation %}{{- m.content + END }}"
    "{%- endgeneration %}{%- else %}{{- m.role + '\\n' + m.content + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'model' + SEP }}{%- endif %}"
)


def jinja(tmp_path, separator: str, end: str) -> str:
    path = tmp_path / "mine.jinja"
    path.write_text(MARKED.replace("SEP", repr(separator)).replace("END", repr(end)))
    return str(path)


def test_a_jinja_file_works(word_tokenizer, tmp_path):
    example = render(word_tokenizer, jinja(tmp_path, "\n", "</s>"), TURNS[1:3])
    assert [i for i in example.labels.tolist() if i != IGNORE_INDEX] == [17, 21, EOS]


def test_an_end_that_is_not_trained_is_refused(word_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="never stops"):
        render(word_tokenizer, jinja(tmp_path, "\n", "\n"))


def test_a_token_that_straddles_the_mark_is_refused(word_tokenizer, tmp_path):
    template = jinja(tmp_path, "<", "</s>")
    result = render(word_tokenizer, template, (Message("user", "Hi"), Message("assistant", "<Hello.")))
    assert isinstance(result, BadRow) and result.reason == "straddling_token"  # "<" + "<" is one token


@pytest.mark.parametrize("answer", ["\nHello.", "\n\n Hello."])
def test_leading_blank_lines_that_would_be_one_token_with_the_templates_are_trimmed(word_tokenizer, tmp_path, answer):
    template = jinja(tmp_path, "\n", "</s>")
    example = render(word_tokenizer, template, (Message("user", "Hi"), Message("assistant", answer)))
    blanks = answer[: answer.rindex("\n") + 1]
    trained = word_tokenizer.decode([i for i in example.labels.tolist() if i != IGNORE_INDEX])
    assert trained == f"{answer.removeprefix(blanks)}</s>"
    (rewrite,) = example.rewrites
    assert rewrite[:2] == ("answer_start_trimmed", 1) and rewrite.lost_tokens > 0


def test_two_bos_are_refused(word_tokenizer, tmp_path):
    path = tmp_path / "twice.jinja"
    path.write_text("{{ bos_token + bos_token }}" + MARKED.replace("SEP", "'\\n'").replace("END", "'</s>'"))
    with pytest.raises(ValueError, match="two BOS"):
        render(word_tokenizer, str(path))


def test_missing_control_tokens_are_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"needs the control token '<\|start_header_id\|>'"):
        resolve_chat_template("llama3", tiny_tokenizer)


def test_unknown_template_names_the_known_ones(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"alpaca.*chatml"):
        resolve_chat_template("chatlm", tiny_tokenizer)


def test_a_tokenizer_without_a_template_is_refused(word_tokenizer):
    with pytest.raises(ValueError, match="has no chat template"):
        resolve_chat_template("tokenizer", word_tokenizer)


def test_another_tokenizers_template(word_tokenizer, tiny_tokenizer):
    resolved = resolve_chat_template(f"tokenizer:{tiny_tokenizer.name_or_path}", word_tokenizer)
    assert resolved.text == tiny_tokenizer.chat_template
    example = render(word_tokenizer, f"tokenizer:{tiny_tokenizer.name_or_path}")
    assert [i for i in example.labels.tolist() if i != IGNORE_INDEX] == [17, 21, IM_END, 19, 24, 20, IM_END]


UNMARKED = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
PROMPT = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
LAST_ONLY = UNMARKED.replace("m.content", "('long' if loop.last and m.role == 'assistant' else '') + m.content")


def test_marks_derived_from_prefixes_equal_written_ones(word_tokenizer, tmp_path):
    path = tmp_path / "unmarked.jinja"
    path.write_text("{{- bos_token }}" + UNMARKED + PROMPT)
    derived, marked = render(word_tokenizer, str(path)), render(word_tokenizer, "chatml")
    assert derived.input_ids.tolist() == marked.input_ids.tolist()
    assert derived.labels.tolist() == marked.labels.tolist()


def test_a_template_that_rewrites_earlier_turns_drops_the_row_with_a_remedy(word_tokenizer, tmp_path):
    path = tmp_path / "last.jinja"
    path.write_text(LAST_ONLY + PROMPT)
    result = render(word_tokenizer, str(path))
    assert isinstance(result, BadRow) and result.reason == "template_not_prefix" and "generation" in result.detail


# Which turns, reasoning, tools.


FLAGS = (TURNS[1], Message("assistant", "Hello.", train=False), TURNS[3], Message("assistant", "So long", train=True))


@pytest.mark.parametrize(
    ("messages", "train_on", "expected"),
    [
        (TURNS, "all", "Hello.</s>So long</s>"),
        (TURNS, "last", "So long</s>"),
        (TURNS, "flags", "no_trained_tokens"),
        (FLAGS, "all", "So long</s>"),
        (FLAGS, "flags", "So long</s>"),
        (FLAGS[:2], "all", "no_trained_tokens"),
    ],
)
def test_which_turns_are_trained(word_tokenizer, messages, train_on, expected):
    assert trained_text(word_tokenizer, "alpaca", messages, train_on=train_on) == expected


THINKING = (TURNS[1], Message("assistant", "Hello.", reasoning="Be kind"))
INLINE = (TURNS[1], Message("assistant", "<think>\nBe kind\n</think>\n\nHello."))


@pytest.mark.parametrize("messages", [THINKING, INLINE], ids=["field", "inline"])
def test_reasoning_is_kept_or_stripped(wider_tokenizer, messages):
    kept = "<think>\nBe kind\n</think>\n\nHello.<|im_end|>"
    assert trained_text(wider_tokenizer, "qwen3", messages) == kept
    assert trained_text(wider_tokenizer, "chatml", messages) == kept
    assert trained_text(wider_tokenizer, "chatml", messages, reasoning="strip") == "Hello.<|im_end|>"
    assert trained_text(wider_tokenizer, "qwen3", messages, reasoning="strip") == "Hello.<|im_end|>"


def test_tools_that_the_template_leaves_out_are_refused(word_tokenizer):
    calling = (TURNS[1], Message("assistant", "", tool_calls=(ToolCall("Bye", {}),)))
    assert trained_text(word_tokenizer, "chatml", calling) == "tools_not_in_template"
    assert trained_text(word_tokenizer, "gemma", (*TURNS, Message("tool", "Hi"))) == "template_refused"


def test_a_prompt_that_ends_before_the_marks_is_refused(word_tokenizer, tmp_path):
    path = tmp_path / "short.jinja"
    path.write_text(
        MARKED.replace("SEP", "'\\n'").replace("END", "'</s>'").replace("{{- 'model' + '\\n' }}{%- endif", "{%- endif")
    )
    with pytest.raises(ValueError, match="never trained on"):
        render(word_tokenizer, str(path))


def test_what_the_generation_prompt_gives_is_not_trained(shared_data):
    """TRL's variant of Qwen2.5 marks the line break that the generation prompt already holds."""
    import trl

    tokenizer = load_tokenizer(str(shared_data / "tokenizers/qwen3"))
    path = Path(trl.__file__).parent / "chat_templates/qwen2_5_training.jinja"
    theirs, ours = (trained_text(tokenizer, template, TURNS) for template in (str(path), "qwen2_5"))
    assert theirs == ours == "Hello.<|im_end|>So long<|im_end|>"
