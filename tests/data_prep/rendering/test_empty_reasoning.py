"""The empty block of reasoning: not trained unless asked for, whichever template prints it, however it is rendered."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import trl

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import ChatTemplate, resolve_chat_template
from data_prep.rendering.labels import Turns
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from tests.support.trained_parts import trained_parts
from tests.support.word_tokenizer import MORE_SPECIAL, TOOLS, make_word_tokenizer

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
ENDS = ["<|user|>", "<turn|>", "<|return|>", "<|call|>", "<|end|>", "<|eot|>", "<|observation|>"]
PRINT_A_BLOCK = [
    "qwen3",
    *("qwen3_training", "qwen3_5_think_training", "qwen3_5_nothink_training", "qwen3_6_training", "qwen3_8_training"),
    *("glm4moe_training", "nemotron_3_nano_training", "nemotron_3_super_training", "nemotron_3_ultra_training"),
    "nemotron_3_5_lightning_training",
]
PRINT_NONE = ["gptoss_training", "muse_glimmer_training", "lfm2_2_5", "diffusion_gemma_training"]
USER, PLAIN = Message("user", "Say hello."), Message("assistant", "Hello there.")
THINKS = Message("assistant", "Hello there.", reasoning="They greet.")
QUOTES = Message("assistant", "The <|im_end|> ends it.")
CALLS = Message("assistant", "", tool_calls=(ToolCall("look_up", {"word": "hi"}),))


@pytest.fixture(scope="module", params=[[], ["<think>", "</think>", "\n\n"]], ids=["pieces", "tokens"])
def tokenizer(request, tiny_tokenizer):
    """With tags and line breaks that are encoded like any text, or that are tokens as in Qwen's."""
    own = copy.deepcopy(tiny_tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *ENDS]})
    own.add_tokens(request.param)
    return own


def template_of(name: str, tokenizer, **options) -> ChatTemplate:
    if name == "qwen3":
        return resolve_chat_template(name, tokenizer, **options)
    return ChatTemplate((TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), name, has_marks=True)


def rendered(renderer: Renderer, *messages: Message, tools=()):
    (result,) = renderer.render([Conversation(messages, "s", 0, tools)])
    assert not isinstance(result, BadRow), result
    return result


def asked(tokenizer, template: ChatTemplate, before: tuple[Message, ...], *, thinks: bool) -> str:
    """What the generation prompt holds after the last question; some ask not to think in the question too."""
    prompt = tokenizer.apply_chat_template(
        [m.as_dict() for m in before],
        chat_template=template.text,
        tokenize=False,
        add_generation_prompt=True,
        **({} if thinks else {"enable_thinking": False}),
    )
    return prompt[prompt.rindex(before[-1].content) + len(before[-1].content) :]


@pytest.mark.parametrize("last", [PLAIN, THINKS, QUOTES], ids=["plain", "reasoning", "escaped"])
@pytest.mark.parametrize("name", PRINT_A_BLOCK)
def test_what_the_templates_own_prompts_supply_is_what_is_not_trained(tokenizer, name, last):
    template = template_of(name, tokenizer)
    messages = (USER, PLAIN, USER, last)
    example = rendered(Renderer(tokenizer, template), *messages)
    parts = trained_parts(tokenizer, example)
    assert len(parts) == 2
    for i, (before, own) in zip((1, 3), parts, strict=True):
        thinks = messages[i].reasoning is not None
        if thinks and name == "qwen3_5_nothink_training":
            continue  # its prompt never asks to think
        prompt = asked(tokenizer, template, messages[:i], thinks=thinks)
        if last.reasoning is not None:  # then nothing in the row says not to think
            prompt = prompt.removeprefix("/nothink")
        assert before[before.rindex(USER.content) + len(USER.content) :] == prompt
        wanted = ("They greet.", "</think>", messages[i].content) if thinks else (messages[i].content,)
        assert [own.find(text) >= 0 for text in wanted] == [True for _ in wanted] and ("think>" in own) == thinks
    assert example.turns == Turns(2, int(last is THINKS), 2 - int(last is THINKS), 0)


@pytest.mark.parametrize("name", PRINT_A_BLOCK)
def test_a_block_that_is_asked_for_is_trained_but_for_what_the_prompt_holds(tokenizer, name):
    template = template_of(name, tokenizer)
    renderer = Renderer(tokenizer, template, empty_reasoning="train")
    ((before, own),) = trained_parts(tokenizer, example := rendered(renderer, USER, PLAIN))
    prompt = asked(tokenizer, template, (USER,), thinks=True)
    supplied = before[before.rindex(USER.content) + len(USER.content) :]
    # Qwen3.5's prompt ends in the middle of the block's "\n\n"; Nemotron's is never that of a turn without reasoning.
    assert supplied in (prompt, prompt.removesuffix("\n"), prompt.removesuffix("<think>\n"))
    is_given = name == "qwen3_5_nothink_training"
    assert ("</think>" in own) == (not is_given)
    assert example.turns == Turns(1, 0, int(is_given), int(not is_given))


@pytest.mark.parametrize("name", PRINT_NONE)
def test_a_template_without_an_empty_block_is_as_it_was(tokenizer, name):
    template = template_of(name, tokenizer)
    masked, trained, left_out = (
        rendered(Renderer(tokenizer, template, empty_reasoning=policy), USER, PLAIN, USER, THINKS)
        for policy in ("mask", "train", "leave_out")
    )
    assert masked.labels.tolist() == trained.labels.tolist() == left_out.labels.tolist()
    assert masked.turns == trained.turns == Turns(2, 1, 0, 0)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training", "glm4moe_training", "nemotron_3_ultra_training"])
def test_a_call_without_reasoning_is_trained_and_its_block_is_not(tokenizer, name):
    example = rendered(Renderer(tokenizer, template_of(name, tokenizer)), USER, CALLS, tools=TOOLS)
    ((before, own),) = trained_parts(tokenizer, example)
    assert own.lstrip().startswith("<tool_call>") and "look_up" in own
    assert before.rstrip().endswith("</think>")


def test_reasoning_that_the_template_drops_leaves_a_block_that_is_not_trained(tokenizer):
    """Nemotron's prints a line break after it that no generation prompt holds."""
    template = template_of("nemotron_3_nano_training", tokenizer)
    example = rendered(Renderer(tokenizer, template), USER, THINKS, USER, THINKS)
    (before, own), (_, last) = trained_parts(tokenizer, example)
    assert before.endswith("<think></think>") and own.startswith("\nHello there.") and "They greet." in last
    assert example.turns == Turns(2, 1, 1, 0)


@pytest.mark.parametrize("messages", [(USER, PLAIN), (USER, PLAIN, USER, QUOTES)], ids=["plain", "escaped"])
def test_skeletons_and_the_template_make_the_same_labels(tokenizer, messages):
    placed = template_of("qwen3", tokenizer)
    assert placed.is_placed
    found = [rendered(Renderer(tokenizer, t), *messages) for t in (placed, replace(placed, is_placed=False))]
    assert found[0].input_ids.tolist() == found[1].input_ids.tolist()
    assert found[0].labels.tolist() == found[1].labels.tolist()
    assert found[0].turns == found[1].turns


def test_the_fast_encoder_makes_the_same_labels(shared_data):
    from data_prep.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(shared_data / "tokenizers/qwen3"))
    slow, fast = (Renderer(tokenizer, resolve_chat_template("qwen3", tokenizer)) for _ in range(2))
    rows = [
        Conversation((USER, replace(PLAIN, content=text)), "s", 0) for text in ("Hi", "\n\nHi", "  x", "한국어", "> a")
    ]
    assert fast.use_fast_encoder(rows) is None
    for one, other in zip(slow.render(rows), fast.render(rows), strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist() and one.labels.tolist() == other.labels.tolist()
        assert one.labels.tolist().count(151668) == 0 and one.turns == other.turns == Turns(1, 0, 1, 0)


ENDS_IN_A_LETTER = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- generation %}"
    "{{- '<t>' + (m.reasoning_content or '') + 'H' + m.content + '<|im_end|>' }}"
    "{%- endgeneration %}{%- else %}{{- m.content + '<|im_start|>' }}{%- endif %}"
    "{%- endfor %}"
)


def test_a_token_that_holds_the_end_of_the_block_and_the_answer_is_trained(tiny_tokenizer):
    """Without it the answer would lack its beginning; that the model does not think is decided in the tokens before."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["Hel"])
    renderer = Renderer(tokenizer, ChatTemplate(ENDS_IN_A_LETTER, "mine", has_marks=True))
    example = rendered(renderer, USER, replace(PLAIN, content="ello"))
    assert trained_parts(tokenizer, example) == [("Say hello.<|im_start|><t>", "Hello<|im_end|>")]
    escaped = rendered(renderer, USER, replace(PLAIN, content="ello <|im_end|> x"))
    assert trained_parts(tokenizer, escaped) == [("Say hello.<|im_start|><t>", "Hello <|im_end|> x<|im_end|>")]
    apart = rendered(renderer, USER, replace(PLAIN, content="no"))
    assert trained_parts(tokenizer, apart) == [("Say hello.<|im_start|><t>H", "no<|im_end|>")]


@pytest.fixture(scope="module")
def words():
    return make_word_tokenizer(MORE_SPECIAL, ["<think>", "</think>"])


HI = (Message("user", "Hi"), Message("assistant", "Hello."))
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "policy", "answer", "trained"),
    [
        ("qwen3", "mask", "Hello.", "Hello.<|im_end|>"),
        ("qwen3", "train", "Hello.", f"{EMPTY}Hello.<|im_end|>"),
        ("qwen3", "leave_out", "Hello.", "Hello.<|im_end|>"),
        ("qwen3", "mask", f"{EMPTY}Hello.", "Hello.<|im_end|>"),  # the data holds the block itself
        ("qwen3", "leave_out", f"{EMPTY}Hello.", "Hello.<|im_end|>"),
        ("chatml", "mask", f"{EMPTY}Hello.", "Hello.<|im_end|>"),
        ("chatml", "train", f"{EMPTY}Hello.", f"{EMPTY}Hello.<|im_end|>"),
        ("chatml", "leave_out", f"{EMPTY}Hello.", "Hello.<|im_end|>"),
        ("qwen3", "leave_out", "<think>\nHi\n</think>\n\nHello.", "<think>\nHi\n</think>\n\nHello.<|im_end|>"),
    ],
)
def test_policies(words, template, policy, answer, trained):
    chosen = resolve_chat_template(template, words, empty_reasoning=policy)
    renderer = Renderer(words, chosen, empty_reasoning=policy)
    example = rendered(renderer, HI[0], replace(HI[1], content=answer))
    assert words.decode([i for i in example.labels.tolist() if i != IGNORE_INDEX]) == trained
    has_block = EMPTY in words.decode(example.input_ids)
    assert has_block == (policy != "leave_out")
    prompt = words.apply_chat_template(
        [HI[0].as_dict()], chat_template=chosen.text, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    if template == "qwen3" and "Hi\n</think>" not in trained:
        assert words.decode(example.input_ids).startswith(prompt)


def test_a_field_of_blanks_is_no_reasoning(words):
    renderer = Renderer(words, resolve_chat_template("chatml", words))
    blank, none = (rendered(renderer, HI[0], replace(HI[1], reasoning=reasoning)) for reasoning in (" \n", None))
    assert blank.input_ids.tolist() == none.input_ids.tolist()


def test_leave_out_is_refused_where_the_template_prints_the_block_itself(tokenizer):
    with pytest.raises(
        ValueError, match=r"leave_out: the chat template 'qwen3_training' prints '<think></think>\\n\\n'.*`empty"
    ):
        Renderer(tokenizer, template_of("qwen3_training", tokenizer), empty_reasoning="leave_out")
