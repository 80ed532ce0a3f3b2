"""Rows of the template's tokens that pre-training left as they were: adapters alone would never train them.

A base model's tokenizer often has turn tokens that its pre-training never saw. Their rows in the head are then those of
any unused token, and a model that only trains adapters next to them cannot end an answer.

Measured: docs/decisions.md. The rows are compared at the scale of the model's usual rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shards import TOKENIZER_DIR, Manifest, read_manifest, shard_files
from train.checks.weight_rows import Matrix, find_matrices
from train.config.run_config import RunConfig
from train.run.model_identity import model_folder

SAME = 0.01  # of a usual row's norm: rows no farther apart are the same, up to the rounding of bfloat16
_TIGHT = 0.25  # of the usual rows' distance: unused rows within it lie together, and tell what untrained means
_WITHIN = 75  # percent of the unused rows: a row no farther from their middle than these is one of them
_USUAL, _UNUSED, _FEWEST = 256, 64, 4  # rows read of each kind at most; unused rows that are needed to compare with


@dataclass(frozen=True)
class Untrained:
    """Tokens whose rows in one matrix were never trained."""

    module: str  # what the run config calls the matrix, such as `lm_head`
    tokens: dict[str, str]  # token -> what its row is like

    def __str__(self) -> str:
        return f"{self.module}: " + ", ".join(f"{token!r} {like}" for token, like in self.tokens.items())


def check_rows(config: RunConfig, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Problems and notes about the rows of the template's tokens. Reads a few hundred rows of the model's files.

    What is not on this machine is not looked at; who downloads it calls again.
    """
    folder = model_folder(str(config.value("model_name_or_path")), config.value("model_revision"))
    if folder is None:
        return [], []
    try:
        found = untrained_rows(folder, config.own.data, manifest)
    except (OSError, ValueError) as error:
        return [], [f"the rows of the template's tokens are not looked at: {error}"]
    left = [rows for rows in found if config.value("use_peft") and not _trains(config, rows.module)]
    if left:
        return [_refusal(config, left)], []
    return [], [_note(rows) for rows in found]


def untrained_rows(folder: Path, data: str | Path, manifest: Manifest) -> list[Untrained]:
    """What was never trained, of the embeddings for tokens in the shards, of the head for trained ones.

    Raises:
        ValueError, OSError: the weights or the tokenizer cannot be read.
    """
    ends, size = manifest.get("end_token_ids", ()), manifest["tokenizer"]["size"]
    named, parts = _compare(folder, Path(data) / TOKENIZER_DIR, ends, size)
    columns = ("input_ids", "labels")
    used = ((module, _only_used(like, named, data, c)) for (module, like), c in zip(parts, columns, strict=True))
    return [Untrained(module, tokens) for module, tokens in used if tokens]


def rows_of_model(folder: Path, end_token_ids: Sequence[int], size: int) -> list[Untrained]:
    """What was never trained of a model, for every control token that its own template names.

    Args:
        folder: the model's, with its tokenizer.
        end_token_ids: those that end an answer.
        size: of the tokenizer.

    Raises:
        ValueError, OSError: the weights or the tokenizer cannot be read.
    """
    named, parts = _compare(folder, folder, end_token_ids, size)
    return [Untrained(module, {named[i]: text for i, text in like.items()}) for module, like in parts if like]


def _compare(
    folder: Path, tokenizer: Path, ends: Sequence[int], size: int
) -> tuple[dict[int, str], list[tuple[str, dict[int, str]]]]:
    """The tokens by id; and of the embeddings and of the head: the name, and what untrained rows are like by id."""
    settings = _json(folder / "config.json")
    embeddings, head = find_matrices(folder, settings | (settings.get("text_config") or {}))
    named, other = _tokens(tokenizer, ends)
    read = _look(embeddings, named, other, size)
    said = read if head is embeddings else _look(head, named, other, size)
    head_name = "lm_head" if head is embeddings else head.module
    return named, [(embeddings.module, read), (head_name, said)]


def _tokens(folder: Path, end_token_ids: Sequence[int]) -> tuple[dict[int, str], list[int]]:
    """The template's control tokens by id, with those that end a turn; and the ids of all other added tokens."""
    added = {token["id"]: token["content"] for token in _json(folder / "tokenizer.json").get("added_tokens") or []}
    template = _template(folder)
    named = {i: text for i, text in added.items() if text in template}
    ends = {i: added.get(i, f"id {i}") for i in end_token_ids}
    return named | ends, sorted(added.keys() - named.keys() - ends.keys())


def _template(folder: Path) -> str:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    return str(_json(config).get("chat_template") or "") if config.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _look(matrix: Matrix, named: dict[int, str], other: Sequence[int], size: int) -> dict[int, str]:
    """Id -> what its row is like, for the named tokens whose rows were never trained."""
    ids = [i for i in sorted(named) if i < matrix.rows]
    usual = matrix.read(_spread(range(min(size, matrix.rows)), _USUAL))
    scale = float(np.median(np.linalg.norm(usual, axis=1)))
    if not ids or not scale > 0:  # weights that are not numbers are none of this check's
        return {}
    rows = matrix.read(ids)
    groups = [range(size, matrix.rows), [i for i in other if i < matrix.rows]]
    like = _like_unused(rows, usual, [matrix.read(_spread(g, _UNUSED)) for g in groups if len(g) >= _FEWEST], scale)
    twins = _twins(rows, [named[i] for i in ids], scale)
    zero = np.linalg.norm(rows, axis=1) <= SAME * scale
    texts = [_describe(*row) for row in zip(zero, like, twins, strict=True)]
    return {i: text for i, text in zip(ids, texts, strict=True) if text}


def _describe(is_zero: bool, is_like_unused: bool, twin: str | None) -> str | None:
    if is_zero:
        return "is near zero"
    if is_like_unused:
        return "is like an unused token's"
    return f"is the same as that of {twin!r}" if twin else None


def _spread(ids: Sequence[int], most: int) -> list[int]:
    """At most that many of them, evenly spread."""
    places = np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int)
    return [ids[place] for place in places]


def _like_unused(rows: np.ndarray, usual: np.ndarray, groups: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """Which rows lie among those of a group of unused tokens, where the group lies together: (n,) bool."""
    among = np.zeros(len(rows), dtype=bool)
    for group in groups:
        middle = np.median(group, axis=0)  # some of a group may be in use after all
        reach = max(float(np.percentile(_distances(group, middle), _WITHIN)), SAME * scale)
        if reach <= _TIGHT * float(np.median(_distances(usual, middle))):
            among |= _distances(rows, middle) <= reach
    return among


def _distances(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.linalg.norm(rows - point, axis=1)
    return found


def _twins(rows: np.ndarray, names: Sequence[str], scale: float) -> list[str | None]:
    """For each row, another token with the same row."""
    found: list[str | None] = []
    for number, row in enumerate(rows):
        same = _distances(rows, row) <= SAME * scale
        found.append(next((name for i, name in enumerate(names) if same[i] and i != number), None))
    return found


def _only_used(like: dict[int, str], named: dict[int, str], data: str | Path, column: str) -> dict[str, str]:
    """Without the tokens that no document has: a template names tools and images too. By the tokens' texts."""
    used = _used(str(data), column, frozenset(like)) if like else frozenset()
    return {named[i]: text for i, text in like.items() if i in used}


@functools.cache
def _used(data: str, column: str, ids: frozenset[int]) -> frozenset[int]:
    """Which of the ids stand in a column of the training shards; reads until all are found."""
    import pyarrow as pa

    missing, wanted = set(ids), np.array(sorted(ids), dtype=np.int32)
    for file in shard_files(data, read_manifest(data), "train"):
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                numbers = batch.column(column).flatten().to_numpy()
                missing -= set(wanted[np.isin(wanted, numbers)].tolist())
                if not missing:
                    return ids
    return ids - missing


def _trains(config: RunConfig, module: str) -> bool:
    """Whether an option trains the whole matrix, or puts an adapter on it."""
    names = _names(config, "lora_modules_to_save", "lora_target_modules", "lora_target_parameters")
    return any(name.removesuffix(".weight").split(".")[-1] == module for name in names)


def _names(config: RunConfig, *options: str) -> Iterator[str]:
    for option in options:
        value = config.value(option) or ()
        yield from [value] if isinstance(value, str) else map(str, value)


def _refusal(config: RunConfig, found: Sequence[Untrained]) -> str:
    whole = sorted({rows.module for rows in found} | set(_names(config, "lora_modules_to_save")))
    return (
        f"lora_modules_to_save: {config.value('model_name_or_path')} never trained rows that the shards need, and "
        f"adapters alone would leave them as they are, so that answers never end ({'; '.join(map(str, found))}): write "
        f"[{', '.join(whole)}], train all weights (use_peft: false), or begin from the model's instruct version"
    )


def _note(rows: Untrained) -> str:
    return f"rows that pre-training left untrained, and this run trains: {rows}. Look at sample answers for their end"
