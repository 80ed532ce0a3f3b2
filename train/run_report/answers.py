"""Answers to the same prompts: of the base model and of the tuned one next to each other, and over time."""

from __future__ import annotations

import re
from typing import Any

from train.run_report.run_files import QUESTIONS

_MARKS = re.compile(r"<[|｜][^<>]*[|｜]>")  # of chat templates, such as <|im_start|>
MOST = 6  # answers of a prompt over time, the newest ones


def answers(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each prompt, held-out ones first.

    Args:
        samples: rows of samples.jsonl, in order; the base model's are of step 0.

    Returns:
        source, general (a question of one's own), prompt, title (its words), reference, base (None where it was not
        asked), latest (None before the first evaluation of the tuned model), step (of the latest), earlier: (step,
        answer).
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault((str(sample.get("source")), str(sample.get("prompt"))), []).append(sample)
    prompts = [_prompt(source, prompt, rows) for (source, prompt), rows in found.items()]
    return sorted(prompts, key=lambda one: one["general"])


def words(text: str) -> str:
    """In one line, without the marks of chat templates."""
    return " ".join(_MARKS.sub(" ", text).split())


def _prompt(source: str, prompt: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    base = [row.get("answer") for row in rows if row.get("step") == 0]
    tuned = [(row.get("step"), row.get("answer")) for row in rows if row.get("step") != 0]
    step, latest = tuned[-1] if tuned else (None, None)
    return {
        "source": "general" if source == QUESTIONS else source,
        "general": source == QUESTIONS,
        "prompt": prompt,
        "title": words(prompt),
        "reference": rows[-1].get("reference"),
        "base": base[-1] if base else None,
        "latest": latest,
        "step": step,
        "earlier": tuned[:-1][-MOST:],
    }
