"""Evaluation texts, files of them, and the index that decontamination looks rows up in."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.quality.decontamination import Decontaminate, EvaluationIndex
from data_prep.sources.evaluation_files import evaluation_texts

ENGLISH = (
    "A farmer has 17 sheep, and all but 9 of them run away during a thunderstorm at night. How many sheep does the "
    "farmer have left in the morning?"
)
KOREAN = (
    "다음 중 제1형 당뇨병 환자의 초기 치료로 가장 알맞은 것은 무엇인가? 환자는 12세이며 체중이 줄고 갈증을 호소한다."
)


def write(path: Path, rows: list) -> Path:
    """The path, with these rows in the form that its suffix names; texts, one a line, if it is another one."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("\n".join(rows), encoding="utf-8")
    return path


def index_of(path: Path, **options) -> EvaluationIndex:
    """The index of an evaluation file."""
    decontaminate = Decontaminate(files=[str(path)], **options)
    return EvaluationIndex(decontaminate, evaluation_texts(decontaminate))
