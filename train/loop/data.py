"""The packed rows as a memory-mapped `datasets.Dataset`, and the batches that the trainer makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import IGNORE_INDEX, Manifest, check_files, read_manifest, shard_files

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import TrainingArguments

    from train.model.sequence_parallel import Part


def verify_shards(directory: str | Path, manifest: Manifest, args: TrainingArguments) -> None:
    """Read all shards, each process its share of them. Every process must call it.

    Raises:
        ValueError: on every process, if any of them found bytes that are not those the manifest lists.
    """
    from train.run.distributed import gather_problems

    mine = check_files(directory, manifest, hashes=True, share=args.process_index, shares=args.world_size)
    if problems := gather_problems(mine):
        raise ValueError(f"{'; '.join(problems)}: copy or prepare the shards again")


def load_split(directory: str | Path, manifest: Manifest, split: str) -> Dataset | None:
    """All rows of a split, memory-mapped: nothing is copied, and processes of one node share the pages.

    Returns:
        Columns input_ids, labels, seq_lengths, sources (lists of int32), or None if the split has no rows.

    Raises:
        ValueError: a shard file is missing or has another size than the manifest says.
    """
    from datasets import Dataset, concatenate_datasets

    problems = check_files(directory, manifest)
    if problems:
        raise ValueError(f"shard directory {directory} is damaged: {'; '.join(problems)}. Prepare it again")
    files = shard_files(directory, manifest, split)
    if not files:
        return None
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files])


def set_row_order(args: TrainingArguments, manifest: Manifest) -> None:
    """Let rows that lie in the order of the recipe's stages be trained in that order."""
    if manifest["recipe"]["order"] == "curriculum":
        args.train_sampling_strategy = "sequential"


def pad_to_multiple(dataset: Dataset, multiple: int, token_id: int) -> Dataset:
    """Append filler rows, of one untrained token each, until the number of rows is a multiple of `multiple`.

    Without them, accelerate fills the last batches with repeated rows, whose documents would count twice. A filler row
    has no trained token, so it adds nothing to a token-weighted mean.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(dataset) % multiple
    if not missing:
        return dataset
    filler = {"input_ids": [[token_id]], "labels": [[IGNORE_INDEX]], "seq_lengths": [[1]], "sources": [[0]]}
    rows = Dataset.from_dict({name: value * missing for name, value in filler.items()}, features=dataset.features)
    return concatenate_datasets([dataset, rows])


def number_rows(dataset: Dataset) -> Dataset:
    """With a column `row`: the number of each row over all shards of the split. Filler rows have the last ones."""
    import numpy as np

    return dataset.add_column("row", np.arange(len(dataset))).with_format("numpy")


# What SourceCollator adds to a batch; no model knows them.
BATCH_EXTRAS = ("source_ids", "document_rows", "document_lengths")


class SourceCollator:
    """TRL's padding-free collator plus what it drops.

    The batch is TRL's: input_ids, labels, position_ids (1, tokens) int64, cu_seq_lens_q/k int32, ...; `source_ids` is
    (1, tokens) int64: for each token the index of its document's source in the manifest. `document_rows`, (documents,)
    int64, is there if the rows are numbered: for each document the number of its row, -1 for padding.
    `document_lengths` is a list, which stays on the host: tokens of each document, padding among them.

    Given a part, the tokens are those of that part, as `train.model.sequence_parallel.cut` says; these two stay whole.
    """

    def __init__(self, collator: Any, part: Part | None = None):
        self.collator, self.part = collator, part

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch = self.collator(rows)
        lengths = _joined(row["seq_lengths"] for row in rows)
        ids = torch.repeat_interleave(_joined(row["sources"] for row in rows), lengths)
        padding = batch["input_ids"].shape[1] - ids.shape[0]  # pad_to_multiple_of adds tokens at the end
        batch["source_ids"] = torch.nn.functional.pad(ids, (0, padding))[None]
        if "row" in rows[0]:
            documents = torch.tensor([len(row["seq_lengths"]) for row in rows])
            numbers = torch.repeat_interleave(torch.tensor([int(row["row"]) for row in rows]), documents)
            batch["document_rows"] = torch.nn.functional.pad(numbers, (0, padding), value=-1)
        batch["document_lengths"] = batch["cu_seq_lens_q"].diff().tolist()
        return self._part_of(batch)

    def _part_of(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.part is None or self.part.size == 1:
            return batch
        from train.model.sequence_parallel import cut

        return cut(batch, self.part)


def _joined(lists: Iterable[Any]) -> torch.Tensor:
    """Lists or arrays of whole numbers as one tensor, int64."""
    import numpy as np
    import torch

    return torch.from_numpy(np.concatenate([np.asarray(one, dtype=np.int64) for one in lists]))


def load_manifest(directory: str | Path) -> Manifest:
    """The manifest of a complete shard directory; see data_prep.shards."""
    return read_manifest(directory)
