"""Rows longer than seq_len: dropped, truncated or split at turns, never silently."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import inspect_shards, prepare
from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.long_rows import fit
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX, read_manifest, read_rows, shard_files

SYSTEM = Message("system", "Be kind.")


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer))


def conversation(*answer_words: int, system: bool = True) -> Conversation:
    messages = [SYSTEM] if system else []
    for i, words in enumerate(answer_words):
        messages += [Message("user", f"question {i}"), Message("assistant", f"answer {i}" + " word" * words)]
    return Conversation(tuple(messages), "s", 0)


def pieces(renderer, talk: Conversation, seq_len: int, policy: str):
    fitted = fit(talk, renderer.render([talk])[0], seq_len, policy, renderer)
    tokenizer = renderer.tokenizer
    texts = [tokenizer.decode(e.input_ids) for e in fitted.examples]
    trained = [tokenizer.decode([i for i in e.labels.tolist() if i != IGNORE_INDEX]) for e in fitted.examples]
    assert all(e.input_ids.size <= seq_len for e in fitted.examples)
    return fitted, texts, trained


def test_a_row_that_fits_is_left_alone(renderer):
    fitted, texts, _ = pieces(renderer, conversation(3), 256, "split")
    assert (len(texts), fitted.lost_tokens, fitted.how) == (1, 0, None)


@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_drop_says_how_long_it_is(renderer, policy):
    with pytest.raises(BadRow, match=r"too_long: [0-9]+ tokens; seq_len is 40"):
        pieces(renderer, conversation(80), 40, policy)


def test_truncate_keeps_the_beginning_and_leaves_the_end_of_the_cut_turn_out(renderer):
    whole = renderer.render([conversation(80)])[0]
    fitted, texts, trained = pieces(renderer, conversation(80), 60, "truncate")
    assert fitted.how == "truncated" and fitted.lost_tokens == whole.input_ids.size - 60
    assert texts[0].startswith("<|im_start|>system") and trained[0].startswith("answer 0 word")
    assert "<|im_end|>" not in trained[0]


def test_truncate_never_leaves_a_prompt_alone(renderer):
    prompt = Conversation((Message("user", "word " * 80), Message("assistant", "yes")), "s", 0)
    with pytest.raises(BadRow, match="hold no answer"):
        pieces(renderer, prompt, 40, "truncate")


def test_split_makes_pieces_of_whole_exchanges_each_with_the_system_prompt(renderer):
    fitted, texts, trained = pieces(renderer, conversation(10, 10, 10, 10), 110, "split")
    assert fitted.how == "split" and len(texts) > 1
    assert all(text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user") for text in texts)
    answers = [f"answer {i}" + " word" * 10 + "<|im_end|>" for i in range(4)]
    assert "".join(trained) == "".join(answers)  # each answer once, in order, with its end


def test_split_leaves_out_an_exchange_that_fits_nowhere_and_counts_it(renderer):
    fitted, _, trained = pieces(renderer, conversation(2, 200, 2), 90, "split")
    assert "".join(trained) == "answer 0 word word<|im_end|>answer 2 word word<|im_end|>"
    assert fitted.lost_tokens > 200
    with pytest.raises(BadRow, match="too_long"):
        pieces(renderer, conversation(200), 90, "split")


def test_split_counts_what_is_left_out_however_often_the_system_prompt_is_repeated(renderer):
    talk = conversation(*[20] * 6, 200, *[20] * 6)
    talk = replace(talk, messages=(Message("system", "Be kind. " * 10), *talk.messages[1:]))
    fitted, texts, _ = pieces(renderer, talk, 128, "split")
    assert len(texts) > 5 and 200 <= fitted.lost_tokens <= 260


def test_split_trains_of_flagged_rows_what_is_flagged_with_the_rest_as_context(tiny_tokenizer):
    flags = Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer), train_on="flags")
    messages = [
        replace(m, train=i in (5, 12)) if m.role == "assistant" else m
        for i, m in enumerate(conversation(10, 10, 10, 10, 10, 10).messages)
    ]
    messages[4] = replace(messages[4], train=True)  # the second answer; the first is its context
    fitted, texts, trained = pieces(flags, Conversation(tuple(messages), "s", 0), 90, "split")
    assert trained[0] == "answer 1" + " word" * 10 + "<|im_end|>" and "answer 0" in texts[0]
    assert len(trained) == sum(bool(text) for text in trained) == len(texts) == len(fitted.examples)


def test_split_with_train_on_last_trains_the_last_answer_of_the_row_alone(tiny_tokenizer):
    last = Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer), train_on="last")
    fitted, texts, trained = pieces(last, conversation(10, 10, 10, 10), 110, "split")
    assert trained == ["answer 3" + " word" * 10 + "<|im_end|>"] and len(texts) == 1 and fitted.lost_tokens > 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(40, 200), st.booleans())
def test_split_loses_no_exchange_that_fits(renderer, words, seq_len, system):
    talk = conversation(*words, system=system)
    try:
        _, _, trained = pieces(renderer, talk, seq_len, "split")
    except BadRow:
        trained = []
    start = [SYSTEM] if system else []
    for i, count in enumerate(words):
        question, answer = Message("user", f"question {i}"), Message("assistant", f"answer {i}" + " word" * count)
        alone = renderer.render([Conversation((*start, question, answer), "s", 0)])[0]
        found = sum(f"answer {i}{' word' * count}<|im_end|>" in text for text in trained)
        assert found == (alone.input_ids.size <= seq_len)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), min_size=1, max_size=6),
    st.integers(30, 160),
    st.booleans(),
)
def test_pieces_hold_each_exchange_at_most_once_in_order(renderer, shape, seq_len, system):
    """Also where a question or an answer is several messages long."""
    messages = [SYSTEM] if system else []
    for i, (parts, words) in enumerate(shape):
        messages += [Message("user", f"question {i} part {part}") for part in range(parts)]
        messages += [Message("assistant", f"answer {i} part {part}" + " word" * words) for part in range(parts)]
    talk = Conversation(tuple(messages), "s", 0)
    try:
        fitted, texts, trained = pieces(renderer, talk, seq_len, "split")
    except BadRow:
        return
    whole = renderer.render([talk])[0].input_ids.size
    assert fitted.lost_tokens >= 0 and (whole <= seq_len) == (fitted.how is None)
    turns = [turn for text in texts for turn in re.findall(r"(?:question|answer) \d+ part \d+", text)]
    order = [m.content.split(" word")[0] for m in messages if m.role != "system"]
    assert turns == [turn for turn in order if turn in turns] and len(set(turns)) == len(turns)
    exchanges = {turn.split(" part")[0].split()[1] for turn in turns}
    assert turns == [turn for turn in order if turn.split(" part")[0].split()[1] in exchanges]  # whole ones
    assert sum(text.count("Be kind.") for text in texts) == (len(texts) if system else 0)
    assert "".join(trained).count("<|im_end|>") == sum("answer" in turn for turn in turns)


@pytest.mark.parametrize("policy", ["truncate", "split"])
def test_through_the_whole_preparation(policy, tmp_path, tiny_tokenizer):
    rows = [{"messages": conversation(5, 5 + i % 60, 5).as_dicts()} for i in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = {"name": "talk", "path": str(tmp_path / "rows.json"), "form": "messages"}
    recipe = {"tokenizer": tiny_tokenizer.name_or_path, "chat_template": "chatml", "seq_len": 128, "too_long": policy}
    recipe["group_by"] = "conversation"  # all rows ask the same first
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "eval_fraction": 0.2, "sources": [source]}))
    assert prepare.main(["--recipe", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out")]) == 0
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "0"]) == 0
    (counts,) = read_manifest(tmp_path / "out")["sources"]
    how = {"truncate": "truncated", "split": "split"}[policy]
    assert counts["rows"] == counts["kept"] == 60 and counts["changed"][how] > 10 and counts["lost_tokens"][how] >= 0
    assert counts["documents"] > 60 if policy == "split" else counts["documents"] == 60
    # The pieces of one row stay on one side of the eval split.
    sides = {split: first_answers(tmp_path / "out", split, tiny_tokenizer) for split in ("train", "eval")}
    assert sides["eval"] and not sides["train"] & sides["eval"]


def first_answers(folder, split, tokenizer) -> set[str]:
    """The second answer of each document is what tells the rows apart."""
    found = set()
    for path in shard_files(folder, read_manifest(folder), split):
        for row in read_rows(path):
            text = tokenizer.decode(row["input_ids"])
            found |= {part.split("<|im_end|>")[0] for part in text.split("answer 1")[1:] if "<|im_end|>" in part}
    return found
