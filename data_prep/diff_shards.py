"""Entry: what differs between two shard directories: recipe, counts, documents.

    packhaul diff DIR_A DIR_B [--examples N] [--json]

Conversations are compared by their content, the ids and labels of their documents, wherever they are packed. Only
manifests and documents/ are read. Exit code as diff(1): 0 if the directories hold the same, 1 if not, 2 if one cannot
be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name

if TYPE_CHECKING:
    from data_prep.stages.identity_differences import Difference

_MODULE = "data_prep.diff_shards"
_COUNTS = ("rows", "documents", "tokens", "trained_tokens")
_OF_SOURCES = ("rows", "dropped", "changed", "kept", "unused", "train_documents", "train_uses", "eval_documents")
_WIDTH = 38  # of a value in the table


def main(argv: list[str] | None = None) -> int:
    """0 if they hold the same, 1 if not, 2 where one of them cannot be read."""
    options = _parser().parse_args(argv)
    try:
        if options.examples < 0:
            raise ValueError(f"--examples: expected 0 or more, found {options.examples}")
        found = compare(options.a, options.b, options.examples)
    except (ValueError, OSError) as error:
        print(f"{speaker(_MODULE)}: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)
    return 0 if found["equal"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=usage_name(_MODULE), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="DIR_A", help="a shard directory")
    parser.add_argument("b", type=Path, metavar="DIR_B", help="another one")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="raw rows to name of each kind (3)")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    return parser


def compare(a: Path, b: Path, examples: int = 3) -> dict[str, Any]:
    """What differs, as --json shows it.

    Raises:
        ValueError: one is no complete shard directory, or does not say where its documents come from.
    """
    from data_prep.compared_documents import compare_documents
    from data_prep.provenance import Provenance
    from data_prep.shards import read_manifest

    first, second = read_manifest(a), read_manifest(b)
    made = _entries(_identity(first), _identity(second))
    counts = _entries(_counts(first), _counts(second))
    documents = compare_documents(Provenance.open(a, first), Provenance.open(b, second), examples)
    same_files = _files(first) == _files(second)
    is_equal = not made and not counts and same_files and not any(kind["documents"] for kind in documents["differ"])
    return {
        "a": str(a),
        "b": str(b),
        "equal": is_equal,
        "made_from": made,
        "counts": counts,
        "documents": documents,
        "same_shard_files": same_files,
    }


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the directory was made from."""
    return {"recipe": manifest["recipe"], **manifest.get("made_from", {})}


def _counts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The numbers of splits and sources."""
    splits = {name: {key: split[key] for key in _COUNTS} for name, split in manifest["splits"].items()}
    sources = manifest["sources"]
    return {**splits, "sources": {one["name"]: {key: one[key] for key in _OF_SOURCES} for one in sources}}


def _files(manifest: dict[str, Any]) -> dict[str, str]:
    """Hashes of the shards and of the tokenizer's files."""
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    return {**{shard["file"]: shard["sha256"] for shard in shards}, **manifest.get("tokenizer_files", {})}


def _entries(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Key by key."""
    from data_prep.stages.identity_differences import NOTHING, differences

    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return [_entry(one) for name in names for one in differences(a.get(name, NOTHING), b.get(name, NOTHING), name)]


def _entry(found: Difference) -> dict[str, Any]:
    from data_prep.stages.identity_differences import NOTHING

    sides = {"a": found.made, "b": found.now}
    there = {side: value for side, value in sides.items() if value is not NOTHING}
    return {"key": found.at.replace(": ", "."), **there, **({"order": True} if found.is_order else {})}


def _show(found: dict[str, Any]) -> None:
    if found["equal"]:
        print(f"{found['a']} and {found['b']} hold the same")
        return
    print(f"A {found['a']}\nB {found['b']}")
    _show_entries("made from", found["made_from"])
    _show_entries("counts", found["counts"])
    documents = found["documents"]
    if documents["note"]:
        print(f"\nnote: {documents['note']}")
    print(f"\n{'conversations':36} {'number':>12}  for example")
    for kind in documents["differ"]:
        print(f"  {kind['kind']:34} {kind['documents']:>12,}  {', '.join(kind['examples'])}")
    print(f"  {'the same in both':34} {documents['same']:>12,}")
    if not found["same_shard_files"]:
        print("\nthe files of shards and tokenizer are not the same")


def _show_entries(title: str, entries: list[dict[str, Any]]) -> None:
    if not entries:
        return
    width = min(60, max(len(entry["key"]) for entry in entries))
    print(f"\n{title:{width + 2}} {'A':{_WIDTH}} B")
    for entry in entries:
        a, b = ("(in another order)" if entry.get("order") else _cell(entry, side) for side in ("a", "b"))
        print(f"  {entry['key']:{width}} {a:{_WIDTH}} {b}")


def _cell(entry: dict[str, Any], side: str) -> str:
    if side not in entry:
        return "-"
    text = json.dumps(entry[side], ensure_ascii=False)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


if __name__ == "__main__":
    sys.exit(main())
