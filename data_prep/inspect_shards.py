"""Entry: verifies a shard directory and shows what the model will really see.

    packhaul inspect DIR [--rows N] [--split train|eval]

Checks every file's hash and every row's invariants, then prints packed rows document by document: on a terminal trained
tokens in green and the others dim, elsewhere the trained ones in ⟦ ⟧. Exit code 0 if sound, 1 if not, 2 if it is no
complete shard directory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name
from data_prep.shards import (
    IGNORE_INDEX,
    MANIFEST,
    SPLITS,
    TOKENIZER_DIR,
    Manifest,
    check_documents,
    check_files,
    read_manifest,
    read_rows,
    shard_files,
)


def main(argv: list[str] | None = None) -> int:
    """Verify, then show."""
    parser = CommandParser(prog=usage_name("data_prep.inspect_shards"), description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=2, help="packed rows to show (2)")
    parser.add_argument("--split", choices=SPLITS, default="train")
    arguments = parser.parse_args(argv)
    who = speaker("data_prep.inspect_shards")
    try:
        manifest: Manifest = read_manifest(arguments.directory)
    except ValueError as error:
        print(f"{who}: error: {error}", file=sys.stderr)
        return 2
    try:
        problems = list(verify(arguments.directory, manifest))
    except ValueError as error:
        problems = [str(error)]
    for problem in problems[:20]:
        print(f"{who}: {problem}", file=sys.stderr)
    if problems:
        print(f"{who}: {len(problems)} problem(s): prepare the data again", file=sys.stderr)
        return 1
    counts = ", ".join(
        f"{s}: {c['documents']:,} documents in {c['rows']:,} rows" for s, c in manifest["splits"].items()
    )
    print(f"{arguments.directory} is sound ({counts})")
    show(arguments.directory, manifest, arguments.split, arguments.rows)
    return 0


def verify(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong: files by hash, rows by the contract, totals against the manifest."""
    problems = [*check_files(directory, manifest, hashes=True), *check_documents(directory, manifest)]
    yield from problems
    if problems:
        return  # rows of damaged files would only repeat it
    for split in SPLITS:
        listed: Mapping[str, Any] = manifest["splits"][split]
        totals = {"rows": 0, "documents": 0, "tokens": 0, "trained_tokens": 0}
        for path in shard_files(directory, manifest, split):
            for number, row in enumerate(read_rows(path)):
                yield from (f"{path} row {number}: {problem}" for problem in row_problems(row, manifest))
                totals["rows"] += 1
                totals["documents"] += row["seq_lengths"].size
                totals["tokens"] += row["input_ids"].size
                totals["trained_tokens"] += int((row["labels"] != IGNORE_INDEX).sum())
        for key, found in totals.items():
            if found != listed[key]:
                yield f"{split}: {MANIFEST} says {listed[key]} {key}, the shards hold {found}"


def row_problems(row: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    """Breaches of the contract in one packed row: (n,) int32 arrays as in data_prep.shards."""
    ids, labels, lengths, sources = (row[k] for k in ("input_ids", "labels", "seq_lengths", "sources"))
    if ids.size > manifest["seq_len"] or ids.size == 0:
        yield f"expected 1 to {manifest['seq_len']} tokens, found {ids.size}"
    if labels.size != ids.size or int(lengths.sum()) != ids.size or lengths.min() < 1:
        yield f"{ids.size} ids, {labels.size} labels, seq_lengths {lengths.tolist()} do not agree"
        return
    if sources.size != lengths.size or sources.max() >= len(manifest["sources"]) or sources.min() < 0:
        yield f"sources {sources.tolist()} do not fit {lengths.size} documents of {len(manifest['sources'])} sources"
    if ids.min() < 0 or ids.max() >= manifest["tokenizer"]["size"]:
        yield f"token ids from {ids.min()} to {ids.max()}, but the tokenizer has {manifest['tokenizer']['size']}"
    trained = labels != IGNORE_INDEX
    if (labels[trained] != ids[trained]).any():
        yield "a label differs from the token at its place"
    ends, start = set(manifest["end_token_ids"]), 0
    for number, length in enumerate(lengths):
        mine = labels[start : start + length]
        last = mine[mine != IGNORE_INDEX][-1] if (mine != IGNORE_INDEX).any() else None
        was_cut = last is not None and mine[-1] != IGNORE_INDEX and manifest["recipe"]["too_long"] == "truncate"
        if last is None or (int(last) not in ends and not was_cut):
            yield f"document {number} trains no token, or does not train the end of its last turn"
        start += length


def show(directory: Path, manifest: Manifest, split: str, num_rows: int) -> None:
    """Print packed rows, document by document."""
    from data_prep.rendering.mask_preview import marked, takes_colours

    tokenizer, colours = _load_tokenizer(directory), takes_colours(sys.stdout)
    names = [source["name"] for source in manifest["sources"]]
    for number, row in enumerate(_first_rows(directory, manifest, split, num_rows)):
        print(f"\n=== {split} row {number}: {row['input_ids'].size} tokens, {row['seq_lengths'].size} documents")
        start = 0
        for length, source in zip(row["seq_lengths"], row["sources"], strict=True):
            ids, labels = (row[k][start : start + length].tolist() for k in ("input_ids", "labels"))
            trained = sum(label != IGNORE_INDEX for label in labels)
            text = marked(tokenizer, ids, labels, colours=colours)
            print(f"--- {names[source]}, {length} tokens, {trained} trained\n{text}")
            start += length


def _first_rows(directory: Path, manifest: Manifest, split: str, num_rows: int) -> Iterator[dict[str, Any]]:
    left = num_rows
    for path in shard_files(directory, manifest, split):
        for row in read_rows(path):
            if left <= 0:
                return
            yield row
            left -= 1


def _load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory / TOKENIZER_DIR)


if __name__ == "__main__":
    sys.exit(main())
