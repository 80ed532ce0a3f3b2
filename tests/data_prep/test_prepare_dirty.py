"""Real files that are broken or dirty, through the whole preparation: what is left out and why, counted here anew."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep import inspect_shards, prepare
from data_prep.shards import read_manifest

Key = tuple[tuple[str, str], ...]  # (role, content) of each message
# What the columns of the dirty rows are, by form `auto`; other rows have none of a form's columns.
DIRTY_FORMS = ("messages", "conversations", "instruction output", "prompt chosen", "question answer")
# Judged and rejected answers, which are refused unless the recipe says what to do with them.
DIRTY_OPTIONS = {
    "messages": {"ignore": ["label"]},
    "conversations": {"ignore": ["chosen", "rejected"]},
    "prompt chosen": {"form": "prompt_completion", "columns": {"completion": "chosen"}},
}


def prepared(folder: Path, tokenizer: str, sources: list[dict[str, Any]]) -> int:
    recipe = {"tokenizer": tokenizer, "chat_template": "chatml", "seq_len": 65_536, "sources": sources}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return prepare.main(
        ["--recipe", str(folder / "recipe.yaml"), "--output", str(folder / "out"), "--num-workers", "1"]
    )


def one_turn(user: Any, assistant: Any) -> Key | str:
    if not (isinstance(user, str) and isinstance(assistant, str)):
        return "not_text"
    if not user.strip():
        return "empty_input"
    key = (("user", user.strip()), ("assistant", assistant.strip()))
    return key if assistant.strip() else "empty_output"


def alpaca(row: dict[str, Any]) -> Key | str:
    more = f"\n\n{row['input']}" if (row.get("input") or "").strip() else ""
    return one_turn(row["instruction"] + more, row["output"])


def text_of(content: Any) -> str:
    """As the template prints it: duplicates are rows of which the same is trained, whatever their form."""
    if isinstance(content, str):
        return content.strip()
    is_parts = isinstance(content, list) and all("value" in part for part in content)
    return "".join(part["value"] for part in content).strip() if is_parts else json.dumps(content)


def chat(messages: list[dict[str, Any]]) -> Key | str:
    roles = {"human": "user", "gpt": "assistant"}
    key = []
    for message in messages:
        content = message["content"] if "content" in message else message["value"]
        role = message.get("role") or message["from"]
        key.append((roles.get(role, role), text_of(content)))
    if key[-1][0] != "assistant" and all(role != "assistant" for role, _ in key):
        return "no_assistant_turn"
    return tuple(key)


def expected(found: dict[str, list[Key | str]]) -> dict[str, dict[str, int]]:
    """Per source: rows by reason. A key that was there before, in any source, is a duplicate."""
    seen: set[Key] = set()
    counts = {}
    for source, keys in found.items():
        reasons: Counter[str] = Counter()
        for key in keys:
            if isinstance(key, str):
                reasons[key] += 1
            elif key in seen:
                reasons["duplicate"] += 1
            else:
                seen.add(key)
        counts[source] = dict(reasons)
    return counts


def test_dirty_files_lose_what_they_must_and_nothing_else(shared_data, tmp_path, tiny_tokenizer):
    text = shared_data / "text"
    bom = text / "ko/logickor_qwen2_BOM.jsonl"
    crlf, chinese = text / "ko/songys_chatbot_11823.csv", text / "med/toyhom_zh_2000_gb18030.csv"
    sources = [
        {"name": "crlf", "path": str(crlf), "ignore": ["label"]},  # a class of texts
        {
            "name": "gb18030",
            "path": str(chinese),
            "form": "question_answer",
            "columns": {"question": "ask", "answer": "answer"},
        },
        # With the mark before it, the first row would not be JSON. This is the file's only column of texts.
        {
            "name": "bom",
            "path": str(bom),
            "form": "question_answer",
            "columns": {"question": "category", "answer": "category"},
        },
        {"name": "repeated", "path": str(text / "med/medical_meadow_5942.json")},
    ]
    rows = {
        "crlf": [(row["Q"], row["A"]) for row in csv.DictReader(crlf.open(encoding="utf-8", newline=""))],
        "gb18030": [(r["ask"], r["answer"]) for r in csv.DictReader(chinese.open(encoding="gb18030", newline=""))],
    }
    objects = [json.loads(line) for line in bom.read_text("utf-8-sig").split("\n") if line]
    rows["bom"] = [(row["category"], row["category"]) for row in objects]
    found = {name: [one_turn(*pair) for pair in pairs] for name, pairs in rows.items()}
    found["repeated"] = [alpaca(r) for r in json.loads((text / "med/medical_meadow_5942.json").read_text("utf-8"))]
    for columns, dirty in by_form(text / "dirty/real_dirty_rows.jsonl").items():
        name = f"dirty-{columns.replace(' ', '-')}"
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in dirty), encoding="utf-8")
        sources.append({"name": name, "path": str(path), **DIRTY_OPTIONS.get(columns, {})})
        found[name] = [dirty_key(columns, row) for row in dirty]
    assert prepared(tmp_path, tiny_tokenizer.name_or_path, sources) == 0
    assert inspect_shards.main([str(tmp_path / "out"), "--rows", "0"]) == 0
    counts = {source["name"]: source for source in read_manifest(tmp_path / "out")["sources"]}
    assert {name: source["rows"] for name, source in counts.items()} == {
        name: len(keys) for name, keys in found.items()
    }
    assert {name: source["dropped"] for name, source in counts.items()} == expected(found)
    assert counts["repeated"]["dropped"] == {"duplicate": 92} and counts["gb18030"]["encodings"] == {"gb18030": 1}
    for name, source in counts.items():
        assert source["kept"] == source["rows"] - sum(source["dropped"].values())
        listed = [
            json.loads(line) for line in (tmp_path / f"out/dropped/{name}.jsonl").read_text("utf-8").split("\n") if line
        ]
        assert Counter(row["reason"] for row in listed) == source["dropped"]


def by_form(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows with the columns of a form, as `row` holds them."""
    rows = [json.loads(line)["row"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        form = next((form for form in DIRTY_FORMS if set(form.split()) <= set(row)), "none")
        grouped.setdefault(form, []).append(row)
    assert len(rows) == 85 and len(grouped["none"]) == 11
    grouped["instruction output"] += grouped.pop("none")  # they lack a column of it
    return grouped


def dirty_key(form: str, row: dict[str, Any]) -> Key | str:
    if row.get("images"):
        return "unread_column"
    if row.get("tools"):
        return "tools_not_in_template"  # which ChatML has no place for
    if form in ("messages", "conversations"):
        return chat(row[form])
    if form == "instruction output":
        return alpaca(row) if set(form.split()) <= set(row) else "missing_column"
    return one_turn(*(row[column] for column in form.split()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ko/kochatgpt_conversation_NOT_JSON.jsonl", {}, "is a JSON object; not_json: Expecting value at character 0"),
        (
            "ko/logickor_qwen2_BOM.jsonl",
            {"form": "question_answer", "columns": {"question": "questions", "answer": "outputs"}},
            "42 rows, dropped {'not_text': 42}",  # they are lists
        ),
        ("ko/logickor_qwen2_BOM.jsonl", {}, "form auto fits none of the columns found: ['id', 'category', 'questions'"),
        (
            "med/medquad_empty_answers_500.jsonl",
            {},
            "medquad_empty_answers_500: 500 rows, dropped {'empty_output': 500}",
        ),
        (
            "dirty/real_dirty_rows.jsonl",
            {},
            "form auto fits none of the columns found: ['source', 'index', 'tags', 'row']",
        ),
        ("med/toyhom_zh_2000_gb18030.csv", {"encoding": "utf-8"}, "is a JSON object; not_utf8: "),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_the_reason(
    shared_data, tmp_path, tiny_tokenizer, capsys, name, options, message
):
    source = {"name": Path(name).stem, "path": str(shared_data / "text" / name), **options}
    assert prepared(tmp_path, tiny_tokenizer.name_or_path, [source]) == 2
    error = capsys.readouterr().err
    assert message in error and (name in error or "rows, dropped" in message)
    assert "Traceback" not in error and not (tmp_path / "out/manifest.json").exists()
