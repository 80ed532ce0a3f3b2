"""Documents of steps, and steps of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.packed_rows import PackedDocument, PackedRows
from data_prep.provenance import SIBLING, SPLIT_NAMES, Provenance
from train.tracing.run_facts import RunFacts

Entry = dict[str, Any]  # as --json shows it
_WHY_NOT_SELECTED = ("take", "weight", "max_repeats", "repeat", "balance")  # keys of a source that leave documents out
_OF_RECIPE = ("total_tokens", "total_epochs")


@dataclass
class Trace:
    """A run's documents; the shards are memory-mapped."""

    facts: RunFacts
    provenance: Provenance
    train: PackedRows
    _positions_of: dict[int, np.ndarray] = field(default_factory=dict)  # by epoch

    @classmethod
    def open(cls, facts: RunFacts) -> Trace:
        """Raises a ValueError where the shards do not say where their documents come from."""
        provenance = Provenance.open(facts.data, facts.manifest)
        return cls(facts, provenance, PackedRows(facts.data, facts.manifest, "train"))

    def step(self, number: int) -> Entry:
        """The documents of an optimizer step (from 1).

        Raises:
            ValueError: the run has no such step.
        """
        facts = self.facts
        if not 1 <= number <= facts.total_steps:
            raise ValueError(f"--step: expected a step from 1 to {facts.total_steps:,} of the run, found {number:,}")
        epoch, rows = facts.order.of_step(number)
        real = [row for row in rows if row < facts.order.rows]
        return {
            "step": number,
            "epoch": epoch + 1,
            "state": facts.state_of(number),
            "packed_rows": len(real),
            "filler_rows": len(rows) - len(real),
            "documents": [entry for row in real for entry in self._of_row(row)],
        }

    def _of_row(self, row: int) -> Iterator[Entry]:
        shard, in_shard = self.train.place(row)
        numbers = self._numbers_in(row)
        for number, document in zip(numbers.tolist(), self.train.documents(row), strict=True):
            yield {
                **self._origin(number, document),
                "shard": shard,
                "shard_row": in_shard,
                "tokens": int(document.input_ids.size),
                "trained_tokens": document.trained_tokens,
                "ids": document.input_ids,
            }

    def _numbers_in(self, row: int) -> np.ndarray:
        first, end = self.train.first_document[row : row + 2]
        numbers: np.ndarray = self.provenance.uses["train"][first:end]
        return numbers

    def _origin(self, number: int, document: PackedDocument | None = None) -> Entry:
        """Source, raw row and file of a document; `document` is what the shards hold of it.

        Raises:
            ValueError: the shards and the index of documents do not agree.
        """
        record = self.provenance.records[number]
        source, row = int(record["source"]), int(record["row"]) % SIBLING
        if document is not None and document.source != source:
            raise ValueError(f"{self.facts.data}: documents/ does not belong to these shards: prepare the data again")
        name = self.facts.manifest["sources"][source]["name"]
        return {"source": name, "row": row, "file": self.provenance.file_of_row(source, row)}

    def document(self, source: str, row: int) -> Entry:
        """What became of a raw row: its documents with the steps that train them, or why none does.

        Raises:
            ValueError: there is no such source or raw row.
        """
        numbers = self.provenance.documents_of(source, row).tolist()
        index, keys = self.provenance.source_index(source), ("reason", "detail", "where")
        dropped = [{k: entry[k] for k in keys if k in entry} for entry in self.provenance.dropped(source, row)]
        return {
            "source": source,
            "row": row,
            "file": self.provenance.file_of_row(index, row),
            "documents": [self._fate(number, dropped) for number in numbers],
            "dropped": dropped,
        }

    def _fate(self, number: int, dropped: list[Entry]) -> Entry:
        record = self.provenance.records[number]
        split = SPLIT_NAMES[record["split"]]
        steps = self._steps_of(number) if split == "train" else []
        why_not = self._why_not(record, steps, dropped)
        return {"split": split, "uses_per_epoch": int(record["copies"]), "steps": steps, "why_not": why_not}

    def _steps_of(self, number: int) -> list[Entry]:
        """Every use of a document in every epoch that the run reaches, in the order of the steps."""
        rows = self._rows_of(number)
        order, total = self.facts.order, self.facts.total_steps
        found = []
        for epoch in range(-(-total // order.steps_per_epoch)):
            position = self._positions(epoch)
            for row in rows.tolist():
                step = epoch * order.steps_per_epoch + int(position[row]) // order.rows_per_step + 1
                shard, in_shard = self.train.place(row)
                place = {"shard": shard, "shard_row": in_shard}
                found.append({"step": step, "epoch": epoch + 1, "state": self.facts.state_of(step), **place})
        return sorted(found, key=lambda use: use["step"])

    def _positions(self, epoch: int) -> np.ndarray:
        """(rows,) the position of each row in the order of an epoch."""
        if epoch not in self._positions_of:
            self._positions_of[epoch] = np.argsort(np.array(self.facts.order.of_epoch(epoch)))
        return self._positions_of[epoch]

    def _rows_of(self, number: int) -> np.ndarray:
        """The packed rows that hold a document, one for each use."""
        uses = np.flatnonzero(self.provenance.uses["train"] == number)
        return np.searchsorted(self.train.first_document, uses, side="right") - 1

    def _why_not(self, record: np.void, steps: list[Entry], dropped: list[Entry]) -> str | None:
        """Why a document is not trained (yet); None where it is."""
        split = SPLIT_NAMES[record["split"]]
        if split == "eval":
            return "held out: it is in the eval split"
        if split == "unused":
            return f"dropped: {dropped[0]['reason']}" if dropped else self._not_selected(int(record["source"]))
        states = {use["state"] for use in steps}
        if "trained" in states:
            return None
        if "planned" in states:
            return f"not reached yet: {self.facts.steps_done:,} steps are recorded as done"
        return f"its step comes after the end of the run, which has {self._last_step():,} steps"

    def _last_step(self) -> int:
        return self.facts.steps_done if self.facts.has_ended else self.facts.total_steps

    def _not_selected(self, index: int) -> str:
        """A document that was kept, repeats none, and is used 0 times: what can have left it out."""
        recipe = self.facts.manifest["recipe"]
        source = recipe["sources"][index]
        keys = [f"{key}: {source[key]}" for key in _WHY_NOT_SELECTED if source.get(key) is not None]
        keys += [f"{key}: {recipe[key]}" for key in _OF_RECIPE if recipe.get(key) is not None]
        return f"not selected for the mixture ({', '.join(keys) or 'its weights'})"
