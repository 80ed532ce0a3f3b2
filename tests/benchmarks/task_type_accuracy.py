"""How often the task types' rules agree with labels that people gave, and how fast they are.

    python -m tests.benchmarks.task_type_accuracy --data ../shared/data [--labelled FILE ...]

Labelled data is scarce, so each set is counted apart:

    dolly_12            the `category` of 12 Dolly rows that come with their context
    logickor_35         the `category` of 42 LogicKor conversations, less its 7 of grammar, no task type of ours
    alpaca, koalpaca    row numbers labelled by hand in task_type_labels.json: `written_with` was seen while the rules
                        were written and flatters them; `fresh` was labelled before the rules were first run on it
    --labelled FILE     JSON or JSON lines with Dolly's columns, such as databricks-dolly-15k.jsonl itself

Dolly's categories become ours by CATEGORIES. They are noisy: "What are some board games to play with the family?" is
brainstorming, "What are some types of physical exercise?" is general_qa, and some plain questions are summarization.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from data_prep.conversation import Conversation, Message
from data_prep.quality.task_types import TASK_TYPES, classify

# information_extraction: what is asked for lies in the given text, so it is closed_qa's task: explanation.
CATEGORIES = {
    "open_qa": "explanation",
    "closed_qa": "explanation",
    "general_qa": "explanation",
    "information_extraction": "explanation",
    "summarization": "summarisation",
    "classification": "classification",
    "brainstorming": "generation",
    "creative_writing": "generation",
    # LogicKor's, by their English names
    "Math": "reasoning",
    "Reasoning": "reasoning",
    "Coding": "coding",
    "Writing": "generation",
    "Understanding": "explanation",
}
LABELS = Path(__file__).with_name("task_type_labels.json")
Labelled = tuple[Conversation, str]


def main(argv: list[str] | None = None) -> int:
    """Measure every set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets")
    parser.add_argument("--labelled", type=Path, nargs="*", default=[], help="more files with Dolly's columns")
    arguments = parser.parse_args(argv)
    text = arguments.data / "text"
    sets = {
        "dolly_12": list(dolly(text / "en/dolly_12_full_columns.json")),
        "logickor_35": list(logickor(text / "ko/logickor_42_messages.jsonl")),
        **dict(hand_labelled("alpaca", text / "en/alpaca_52k.json")),
        **dict(hand_labelled("koalpaca", text / "ko/koalpaca_v1_11432.json")),
        **{file.stem: list(dolly(file)) for file in arguments.labelled},
    }
    result: dict[str, Any] = {name: agreement(rows) for name, rows in sets.items()}
    result["rows_per_second"] = {
        "alpaca": speed(text / "en/alpaca_52k.json"),
        "koalpaca": speed(text / "ko/koalpaca_v1_11432.json"),
    }
    for name, numbers in result.items():
        print(name, json.dumps(numbers), file=sys.stderr)
    print(json.dumps(result))
    return 0


def agreement(rows: list[Labelled]) -> dict[str, Any]:
    """rows, accuracy, and for each label what the rules said."""
    confusion: dict[str, Counter[str]] = {}
    for conversation, label in rows:
        confusion.setdefault(label, Counter())[TASK_TYPES[classify(conversation)]] += 1
    right = sum(said[label] for label, said in confusion.items())
    return {
        "rows": len(rows),
        "accuracy": round(right / len(rows), 3),
        "confusion": {label: dict(said.most_common()) for label, said in sorted(confusion.items())},
    }


def dolly(file: Path) -> Iterable[Labelled]:
    """Rows with instruction, context, response and category."""
    for row in read_rows(file):
        yield conversation(row["instruction"], row.get("context"), row["response"]), CATEGORIES[row["category"]]


def logickor(file: Path) -> Iterable[Labelled]:
    """Conversations whose category reads like "수학(Math)"."""
    for row in read_rows(file):
        category = row["category"].split("(")[-1].rstrip(")")
        if category in CATEGORIES:
            messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
            yield Conversation(messages, "logickor", 0), CATEGORIES[category]


def hand_labelled(name: str, file: Path) -> Iterable[tuple[str, list[Labelled]]]:
    """The rows of an Alpaca-like file that task_type_labels.json names, as two sets."""
    labels = json.loads(LABELS.read_text(encoding="utf-8"))[name]
    rows = read_rows(file)
    for part, by_type in labels.items():
        yield f"{name}_{part}", [(alpaca(rows[i]), label) for label, numbers in by_type.items() for i in numbers]


def alpaca(row: dict[str, str]) -> Conversation:
    """A row with instruction, input and output."""
    return conversation(row["instruction"], row.get("input"), row["output"])


def conversation(instruction: str, context: str | None, response: str) -> Conversation:
    """As data_prep.sources.row_forms joins the columns."""
    question = f"{instruction}\n\n{context}" if context else instruction
    return Conversation((Message("user", question), Message("assistant", response)), "labelled", 0)


def speed(file: Path) -> int:
    """Rows per second of one core (processor time), best of three."""
    conversations = [alpaca(row) for row in read_rows(file)[:20000]]
    seconds = []
    for _ in range(3):
        started = time.process_time()
        for one in conversations:
            classify(one)
        seconds.append(time.process_time() - started)
    return round(len(conversations) / min(seconds))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """A JSON array, or JSON lines."""
    text = file.read_text(encoding="utf-8-sig")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
