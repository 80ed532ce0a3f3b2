"""Templates whose generation prompts and turns differ, made after published ones.

What is trained is what a model says after the prompt of a server, with the token that stops it.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.call_ids import with_call_ids
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.generation_prompts import STAND_IN, after_prompt, after_same_header, closing_of, footer_of
from data_prep.rendering.prompted_turns import can_be_split, fit_as_prompted
from tests.support.published_templates import published, renderer_of, tokenizer_for
from tests.support.trained_parts import trained_parts

TALK = (Message("user", "Hi?"), Message("assistant", "Yes."), Message("user", "So?"), Message("assistant", "No."))
CALLS = (
    *(Message("user", "Hi?"), Message("assistant", "", tool_calls=(ToolCall("look", {"at": "it"}),))),
    *(Message("tool", "found"), Message("assistant", "Yes.")),
)
HEAD = "{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}{% else %}<|assistant|>"
# The prompt of a model that shall not think holds an empty block, which no turn does (Gemma 4, distilled R1).
BLOCK_IN_PROMPT = (
    HEAD + "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>' if enable_thinking is defined and enable_thinking else '<think></think>' }}{% endif %}"
)
# The same, and each turn repeats the end of the block (DeepSeek V3.2).
END_IN_TURN = BLOCK_IN_PROMPT.replace("{{ m.content }}<|end|>", "</think>{{ m.content }}<|end|>")
# The prompt begins the reasoning, whatever the model is asked for (MiniMax M2).
ALWAYS_THINKS = BLOCK_IN_PROMPT.replace("else '<think></think>'", "else '<think>'")
# The end of a turn is the beginning of the next one (GLM).
NEXT_TURN_ENDS = (
    "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}{# tools #}"
)
# The system prompt stands before the last question, where that is the last message (Mistral NeMo).
SYSTEM_LAST = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n' %}{% elif m.role == 'user' %}[INST]{{ ns.system if loop.last }}{{ m.content }}"
    "[/INST]{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
SYSTEM_LAST_CALLS = (
    SYSTEM_LAST.replace("{% else %}", "{% elif m.tool_calls %}{{ m.tool_calls | tojson }}<|end|>{% else %}")
    + "{# tools #}"
)
# A call needs an id of nine letters and digits (Mistral).
WITH_IDS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}"
    "[TOOL_RESULTS]{{ m.tool_call_id }}:{{ m.content }}[/TOOL_RESULTS]{% else %}{% for call in m.tool_calls or [] %}"
    "{{ raise_exception('ids') if call.id | length != 9 }}{{ call.function | tojson }}{{ call.id }}{% endfor %}"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}{# tools #}"
)
# Marks that begin before the prompt for a model that shall not think ends (Laguna).
MARKED = (
    "{% set thinks = enable_thinking is not defined or enable_thinking %}{% for m in messages %}"
    "{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ '/no' if not thinks }}{{ m.content }}{% else %}{% generation %}"
    "<|assistant|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% elif thinks %}<think></think>"
    "{% else %}</think>{% endif %}{{ m.content }}<|end|>{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '<think>' if thinks else '</think>' }}{% endif %}"
)
# A content asks not to think, and is printed without that. Last answers repeat the block of the prompt, calls do not
# (Nemotron Nano 2).
SWITCHED = (
    "{% set ns = namespace(block='<think>') %}{% for m in messages %}{% if '/no_think' in m.content %}"
    "{% set ns.block = '<think></think>' %}{% endif %}{% endfor %}{% for m in messages %}{% if m.role != 'assistant' %}"
    "<|{{ m.role }}|>{{ m.content.replace('/no_think', '').strip() }}{% else %}<|assistant|>{% if m.tool_calls %}"
    "{{ m.tool_calls | tojson }}{% else %}{{ ns.block if loop.last }}{{ m.content }}{% endif %}<|end|>{% endif %}"
    "{% endfor %}{{ '<|assistant|>' + ns.block if add_generation_prompt }}{# tools #}"
)


# The header of an answer is printed after any last turn (Command R7B, ToolACE).
ALWAYS_A_HEADER = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}<|assistant|>{# enable_thinking #}"
)
# A prompt has a line break before its header, a turn has none, and calls have indentation (Llama 4's and DeepSeek V3's
# templates of vLLM).
OTHER_BLANKS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% elif m.role == 'tool' %}"
    "<|tool|>{{ m.content }}{{ '\n' if not loop.last }}<|end|>{% elif m.tool_calls %}<|assistant|>    "
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}<|end|>{% else %}<|assistant|>  "
    "{{ m.content }}<|end|>{% endif %}{% endfor %}{{ '\n<|assistant|>' if add_generation_prompt }}{# tools #}"
)
# An answer begins with a token of its own, after an empty block of reasoning in the prompt alone (Cohere).
ANSWER_TOKEN = (
    "{% set reasoning = reasoning if reasoning is defined else true %}{% for m in messages %}{% if m.role == 'user' %}"
    "<|user|>{{ m.content }}{% else %}<|assistant|>{% if m.reasoning_content %}<|START_THINK|>{{ m.reasoning_content }}"
    "<|END_THINK|>{% endif %}<|START_TEXT|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|assistant|><|START_THINK|>{{ '<|END_THINK|>' if not reasoning }}{% endif %}"
)
# Results are told apart by the ids of their calls, which are not printed (Command R7B).
COUNTED_CALLS = (
    "{% set ns = namespace(n=0, at='') %}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'tool' %}{% set ns.at = '' %}{% for one in messages %}{% for call in one.tool_calls or [] %}"
    "{% if call.id == m.tool_call_id and not ns.at %}{% set ns.at = loop.index | string %}{% endif %}{% endfor %}"
    "{% endfor %}<|tool|>{{ ns.at }}:{{ m.content }}{% else %}<|assistant|>{% for call in m.tool_calls or [] %}"
    "{{ loop.index }}={{ call.function | tojson }}{% endfor %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def parts(template: str, *messages: Message) -> list[tuple[str, str]]:
    """What stands before each trained turn of a row, and the turn."""
    renderer, row = renderer_of(template), Conversation(messages, "s", 0)
    (result,) = renderer.render([row])
    if isinstance(result, BadRow) and can_be_split(row, result):
        served = fit_as_prompted(row, result, 999, "drop", renderer)
        if isinstance(served, BadRow):
            raise served
        return trained_parts(renderer.tokenizer, *served.fitted.examples)
    if isinstance(result, BadRow):
        raise result
    return trained_parts(renderer.tokenizer, result)


def test_an_empty_block_of_the_prompt_is_given_to_the_model():
    assert parts(BLOCK_IN_PROMPT, *TALK) == [
        ("<|user|>Hi?<|assistant|><think></think>", "Yes.<|end|>"),
        ("<|user|>Hi?<|assistant|>Yes.<|end|><|user|>So?<|assistant|><think></think>", "No.<|end|>"),
    ]


def test_what_a_turn_repeats_of_its_prompt_is_not_trained_again():
    assert parts(END_IN_TURN, *TALK)[1] == (
        "<|user|>Hi?<|assistant|></think>Yes.<|end|><|user|>So?<|assistant|><think></think>",
        "No.<|end|>",
    )


def test_an_answer_without_reasoning_never_follows_a_prompt_that_begins_it():
    with pytest.raises(BadRow, match=r"no_reasoning: .*ends in '.*<\|assistant\|><think>'.*give it one"):
        parts(ALWAYS_THINKS, *TALK)


def test_reasoning_follows_the_prompt_of_a_model_that_is_asked_to_think():
    """Not the usual one, which holds an empty block."""
    thinks = (TALK[0], replace(TALK[1], reasoning="why"))
    assert parts(BLOCK_IN_PROMPT, *thinks) == [("<|user|>Hi?<|assistant|><think>", "\nwhy\n</think>\n\nYes.<|end|>")]


def test_the_next_turn_ends_a_turn_also_the_last_one():
    assert parts(NEXT_TURN_ENDS, *TALK) == [
        ("<|user|>Hi?<|assistant|>", "Yes.<|user|>"),
        ("<|user|>Hi?<|assistant|>Yes.<|user|>So?<|assistant|>", "No.<|user|>"),
    ]
    assert [said for _, said in parts(NEXT_TURN_ENDS, *CALLS)] == ['look{"at": "it"}<|observation|>', "Yes.<|user|>"]


@pytest.mark.parametrize("row", [TALK, CALLS])
def test_glm_is_trained_alike_where_trl_does_not_know_the_template(row):
    """An added comment makes it another text than the one that TRL has a variant of."""
    known, unknown = published("glm4moe"), published("glm4moe") + "{#- other -#}"
    assert resolve_chat_template("tokenizer", tokenizer_for(known)).has_marks
    assert not resolve_chat_template("tokenizer", tokenizer_for(unknown)).has_marks
    assert parts(unknown, *row) == parts(known, *row)


def test_a_system_prompt_that_moves_with_the_questions_stands_where_a_server_prints_it():
    assert parts(SYSTEM_LAST, Message("system", "Be."), *TALK) == [
        ("[INST]Be.\nHi?[/INST]", "Yes.<|end|>"),
        ("[INST]Hi?[/INST]Yes.<|end|>[INST]Be.\nSo?[/INST]", "No.<|end|>"),
    ]


def test_an_answer_to_a_result_is_trained_without_the_system_prompt_that_its_server_leaves_out():
    """And the call with it (Mistral NeMo)."""
    system = Message("system", "Be.")
    calling, answering = parts(SYSTEM_LAST_CALLS, system, *CALLS)
    assert calling[0] == "[INST]Be.\nHi?[/INST]" and answering[1] == "Yes.<|end|>"
    assert answering[0].startswith("[INST]Hi?[/INST]") and "Be." not in answering[0]
    renderer, row = renderer_of(SYSTEM_LAST_CALLS), Conversation((system, *CALLS), "s", 0)
    served = fit_as_prompted(row, BadRow("template_not_prefix", ""), 999, "drop", renderer)
    assert ("system_prompt_left_out", 1) in [rewrite[:2] for rewrite in served.rewrites]


@pytest.mark.parametrize("asks", ["/no_think", "Be. /no_think"])
def test_a_call_follows_the_empty_block_of_a_prompt_that_was_asked_for(asks):
    calling, answering = parts(SWITCHED, Message("system", asks), *CALLS)
    said = asks.removesuffix("/no_think").strip()
    assert calling[0] == f"<|system|>{said}<|user|>Hi?<|assistant|><think></think>"
    assert calling[1].startswith('[{"type"') and calling[1].endswith("<|end|>")
    assert answering[0].endswith("<|tool|>found<|assistant|><think></think>") and answering[1] == "Yes.<|end|>"


def test_a_content_that_lacks_more_than_its_switch_is_left_out():
    template = SWITCHED.replace(".strip()", ".replace('Be.', '').strip()")
    with pytest.raises(BadRow, match=r"left_out_by_template.*message 0 \(system\)"):
        parts(template, Message("system", "Be. /no_think"), *CALLS)


def test_a_template_without_system_prompts_drops_such_rows():
    template = SYSTEM_LAST_CALLS.replace("{{ ns.system if loop.last }}", "")
    with pytest.raises(BadRow, match=r"left_out_by_template.*message 0 \(system\)"):
        parts(template, Message("system", "Be."), *CALLS)


def test_calls_have_ids_where_the_template_wants_them_and_results_the_same():
    (before, said), (context, _) = parts(WITH_IDS, *CALLS)
    assert before == "[INST]Hi?[/INST]"
    found = re.fullmatch(r'\{"name": "look", "arguments": \{"at": "it"\}\}([0-9A-Za-z]{9})<\|end\|>', said)
    assert found and f"[TOOL_RESULTS]{found[1]}:found[/TOOL_RESULTS]" in context
    assert parts(WITH_IDS, *CALLS)[0] == (before, said)


def test_results_have_the_ids_of_their_calls_in_order():
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turn, result = {"role": "assistant", "content": "", "tool_calls": [call, call]}, {"role": "tool", "content": "x"}
    made = with_call_ids([turn, result, result, result, turn])
    first, second = (one["id"] for one in made[0]["tool_calls"])
    assert first != second and [m.get("tool_call_id") for m in made[1:4]] == [first, second, None]
    assert made[4]["tool_calls"][0]["id"] not in (first, second)
    assert "id" not in call and "tool_call_id" not in result


def test_marks_that_begin_before_the_prompt_ends_leave_the_prompt_out():
    assert parts(MARKED, *TALK)[0] == ("<|user|>/noHi?<|assistant|></think>", "Yes.<|end|>")
    thinks = (TALK[0], replace(TALK[1], reasoning="why"))
    assert parts(MARKED, *thinks) == [("<|user|>Hi?<|assistant|><think>", "why</think>Yes.<|end|>")]


def test_a_row_with_reasoning_is_that_of_a_model_that_was_asked_to_think():
    """Also where the template says so in the system prompt, and thinks only when asked to."""
    template = MARKED.replace("is not defined or", "is defined and").replace("'/no' if not", "'/yes' if")
    thinks = (TALK[0], replace(TALK[1], reasoning="why"))
    assert parts(template, *thinks) == [("<|user|>/yesHi?<|assistant|><think>", "why</think>Yes.<|end|>")]
    assert parts(template, *TALK[:2]) == [("<|user|>Hi?<|assistant|></think>", "Yes.<|end|>")]


def test_the_header_that_follows_any_last_turn_is_not_trained():
    assert parts(ALWAYS_A_HEADER, *TALK) == [
        ("<|user|>Hi?<|end|>\n<|assistant|>", "Yes.<|end|>"),
        ("<|user|>Hi?<|end|>\n<|assistant|>Yes.<|end|>\n<|user|>So?<|end|>\n<|assistant|>", "No.<|end|>"),
    ]


def test_a_template_that_always_prints_a_prompt_is_refused_where_no_end_of_a_turn_is_known():
    with pytest.raises(ValueError, match="header of a next answer after the last one"):
        renderer_of(ALWAYS_A_HEADER.replace("<|end|>", "<|stop|>").replace("<|assistant|>{#", "<|assistant|>\n\n{#"))


def test_a_prompt_may_have_other_white_space_than_turns():
    assert parts(OTHER_BLANKS, *TALK) == [
        ("<|user|>Hi?<|end|>\n<|assistant|>", "Yes.<|end|>"),
        ("<|user|>Hi?<|end|><|assistant|>  Yes.<|end|><|user|>So?<|end|>\n<|assistant|>", "No.<|end|>"),
    ]
    call = '{"name": "look", "arguments": {"at": "it"}}<|end|>'
    assert parts(OTHER_BLANKS, *CALLS) == [
        ("<|user|>Hi?<|end|>\n<|assistant|>", call),
        (f"<|user|>Hi?<|end|><|assistant|>    {call}<|tool|>found<|end|>\n<|assistant|>", "Yes.<|end|>"),
    ]


def test_an_answer_follows_the_empty_block_with_the_token_that_begins_it():
    assert parts(ANSWER_TOKEN, *TALK[:2]) == [
        ("<|user|>Hi?<|assistant|><|START_THINK|><|END_THINK|>", "<|START_TEXT|>Yes.<|end|>")
    ]
    thinks = (TALK[0], replace(TALK[1], reasoning="why"))
    assert parts(ANSWER_TOKEN, *thinks) == [
        ("<|user|>Hi?<|assistant|><|START_THINK|>", "why<|END_THINK|><|START_TEXT|>Yes.<|end|>")
    ]


def test_results_are_told_apart_where_the_template_does_so_by_ids():
    twice = replace(CALLS[1], tool_calls=CALLS[1].tool_calls * 2)
    before, _ = parts(COUNTED_CALLS, CALLS[0], twice, CALLS[2], replace(CALLS[2], content="lost"), CALLS[3])[1]
    assert before.endswith("<|tool|>1:found<|tool|>2:lost<|assistant|>")


def test_a_template_for_tools_alone_says_so():
    with pytest.raises(ValueError, match=r"NoneType.* take no row without tools: name the tokenizer"):
        renderer_of("{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + NEXT_TURN_ENDS)


def test_closing_of():
    tokens = ["<|user|>", "<|use"]
    assert closing_of("a", "a<|user|>b", tokens) == "<|user|>"
    assert closing_of("a", "a\n<|user|>b", tokens) == "\n<|user|>"
    assert closing_of("a", "aUser: b", tokens) == "" == closing_of("a", "b<|user|>", tokens)


def test_footer_of():
    def found(asked: str, answered: str) -> str | None:
        return footer_of(asked, answered, ["<e>"], ["<e>", "<x>", "<a>"])

    assert found("q<e>\n<a>", "q<e>\n<a>y<e>\n<a>") == "\n<a>"
    assert found("q<e>\n", "q<a>y<e>\n") == "" == found("q<i>", "qy<e>")
    assert found("q<x><a>", "q<a>y<x><a>") is None


def test_after_same_header():
    def found(prompt: str, text: str, header: str, content: str = "") -> str | None:
        return after_same_header(prompt, text, f"q{header}{STAND_IN}<e>", "q", content)

    assert found("q\n<a>", "q<a> x<e>", "<a> ", "x") == "x<e>"
    assert found("q<a>", "q<a> x<e>", "<a> ", "x") == " x<e>"  # as the prompt goes on
    assert found("q<a>", "q <a> (x)<e>", "<a>  ") == "(x)<e>"  # a call
    assert found("q<a>", "q<a>x", "<b>", "x") is None
    assert found("q<a>", "q<b>x", "<a>", "x") is None
    assert found("q", "q<a>x", "<a>", "x") is None  # the model would write the header


def test_after_prompt():
    assert after_prompt("q<a>", "q<a>x<e>", f"q<a>{STAND_IN}<e>", "q") == "x<e>"
    assert after_prompt("q<a>", "q<b>x", f"q<a>{STAND_IN}", "q") is None  # the turn has another header
    assert after_prompt("q<a><t>", "q<b>x", f"q<b>{STAND_IN}", "q") is None  # "<" is no header
    assert after_prompt("q", "q<a>x", f"q<a>{STAND_IN}", "q") is None  # the model would write the header
    assert after_prompt("q", "q x", f"q {STAND_IN}", "q") == " x"
