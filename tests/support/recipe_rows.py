"""Generated raw rows in the form of each shipped recipe's sources, and a tokenizer that its chat template fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from data_prep.strict_files import read_yaml
from tests.support.published_templates import published, tokenizer_for

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ROOT / "data_prep" / "templates"
NUM_ROWS = 60
# The published template that stands for a recipe's own; TRL carries it.
PUBLISHED = {"tokenizer": "qwen3_5_think", "tokenizer:google/gemma-3-1b-it": "gemma3"}
TOOL = {"name": "weather", "description": "Looks it up.", "parameters": {"type": "object", "properties": {}}}
_TOOL_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def alpaca(i: int) -> dict[str, Any]:
    """As tatsu-lab/alpaca."""
    return {"instruction": f"Write the number {i}.", "input": "" if i % 2 else "as a digit", "output": f"It is {i}."}


def dolly(i: int) -> dict[str, Any]:
    """As nlpai-lab/databricks-dolly-15k-ko."""
    context = "" if i % 2 else f"문장 {i}"
    return {"instruction": f"질문 {i}?", "context": context, "response": f"대답은 {i}입니다.", "category": "qa"}


def question_answer(i: int) -> dict[str, Any]:
    """A question and an answer."""
    return {"question": f"{i}일 동안 아픈데 왜 그런가요?", "answer": f"{i}일이면 쉬십시오."}


def messages(i: int) -> dict[str, Any]:
    """As HuggingFaceH4/ultrachat_200k and zai-org/LongAlign-10k: two exchanges."""
    turns = [("user", f"Question {i}?"), ("assistant", f"Answer {i}."), ("user", "Why?"), ("assistant", f"As {i}.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    return {**row, "prompt": f"Question {i}?", "prompt_id": f"id{i}", "length": 40 + i}


def tool_calls(i: int) -> dict[str, Any]:
    """As llamafactory/glaive_toolcall_en: two exchanges, the first with a call and its result."""
    call = json.dumps({"name": "weather", "arguments": {"city": f"City {i}"}})
    turns = [("human", f"How is City {i}?"), ("function_call", call), ("observation", json.dumps({"sky": f"blue {i}"}))]
    turns += [("gpt", f"Blue, {i} degrees."), ("human", "Thanks!"), ("gpt", "You are welcome.")]
    talk = [{"from": role, "value": text} for role, text in turns]
    return {"conversations": talk, "tools": json.dumps([{**TOOL, "parameters": _TOOL_CITY}])}


def reasoning(i: int) -> dict[str, Any]:
    """As open-thoughts/OpenThoughts3-1.2M; every fourth row has a second exchange."""
    turns = [("human", f"What is {i} + 1?"), ("gpt", f"<think>\n{i} and one more.\n</think>\n\n{i + 1}")]
    if i % 4 == 0:
        turns += [("human", "And one more?"), ("gpt", f"<think>\nOne after {i + 1}.\n</think>\n\n{i + 2}")]
    talk = [{"from": role, "value": text} for role, text in turns]
    return {"conversations": talk, "difficulty": 5, "source": "made", "domain": "math"}


FORMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "alpaca": alpaca,
    "dolly": dolly,
    "question_answer": question_answer,
    "messages": messages,
    "tool_calls": tool_calls,
    "reasoning": reasoning,
}


def on_generated_rows(recipe: Path, folder: Path, seq_len: int = 1024) -> Path:
    """The recipe as shipped, but for its tokenizer, its sources' places and shorter rows, in the folder."""
    options, _ = read_yaml(recipe)
    template, of_hub = tokenizer_folder(options, folder / "tokenizer"), ("dataset", "subset", "split", "revision")
    for number, source in enumerate(options["sources"]):
        make = FORMS[source["name"] if source["form"] == "sharegpt" else source["form"]]
        file = folder / f"{source['name']}.jsonl"
        lines = [json.dumps(make(i + 1000 * number), ensure_ascii=False) for i in range(NUM_ROWS)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for key in of_hub:
            source.pop(key, None)
        source["path"] = str(file)
    options |= {"tokenizer": str(folder / "tokenizer"), "chat_template": template, "seq_len": seq_len}
    made = folder / "recipe.yaml"
    made.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
    return made


def tokenizer_folder(options: dict[str, Any], folder: Path) -> str:
    """Save a tokenizer with the control tokens of the recipe's template; the template that the recipe is given."""
    template = options["chat_template"]
    name = PUBLISHED.get(template)
    text = published(name) if name else (BUILT_IN / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_for(text)
    tokenizer.save_pretrained(folder)
    return "tokenizer" if name else str(template)
