"""Scored documents by their text: decoded from the shards, trained parts told from the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.packed_rows import PackedDocument, PackedRows
from data_prep.shards import IGNORE_INDEX, TOKENIZER_DIR


def load_tokenizer(data: Path) -> Any:
    """The shards' own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data / TOKENIZER_DIR)


def document_of(score: dict[str, Any], rows: PackedRows) -> PackedDocument:
    """The document of a score.

    Raises:
        ValueError: there is none of its number.
    """
    first = int(rows.first_document[score["packed_row"]])
    documents = list(rows.documents(score["packed_row"]))
    if not 0 <= score["document"] - first < len(documents):
        raise ValueError(f"packed row {score['packed_row']} holds no document {score['document']}: these are others")
    return documents[score["document"] - first]


def parts(document: PackedDocument, tokenizer: Any) -> list[tuple[str, bool]]:
    """(text, whether it is trained) of each stretch of a document."""
    trained = (document.labels != IGNORE_INDEX).tolist()
    stretches = groupby(zip(document.input_ids.tolist(), trained, strict=True), key=lambda pair: pair[1])
    return [(tokenizer.decode([token for token, _ in pairs]), is_trained) for is_trained, pairs in stretches]


def cut(texts: Iterable[tuple[str, bool]], most: int) -> Iterator[tuple[str, bool]]:
    """The same stretches; of a long one its beginning and its end, `most` characters in all."""
    for text, is_trained in texts:
        yield text if len(text) <= most else f"{text[: most // 2]} … {text[-(most // 2) :]}", is_trained
