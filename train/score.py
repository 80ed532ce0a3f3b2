"""Entry: the loss of each document of a split under a model; where labels are wrong, the worst ones show it.

    packhaul score MODEL SHARDS [--split eval] [--output scores.jsonl] [--worst 10]
    packhaul score MODEL SHARDS --part 2/8     # the second eighth, into a file of its own

MODEL is an export or an id on the hub. Each document is scored by itself. Killed and run again, it goes on where it
stopped. A line has source, raw row, packed row, tokens, trained tokens, loss (mean over trained tokens, in nats; null
without one) and accuracy (share of first guesses that are right). At the end: the loss of each source over tokens, as
an evaluation gives it, and the documents with the highest losses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name
from train.run import quiet

if TYPE_CHECKING:
    from data_prep.packed_rows import PackedDocument, PackedRows

_MODULE = "train.score"
CHUNK = 256  # documents between two writes
SHOWN = 300  # characters of a document that is shown


def main(argv: list[str] | None = None) -> int:
    """Score what is not scored yet; 2 when something has to be changed first."""
    options = _parser().parse_args(argv)
    quiet.set_up()
    try:
        _score(options)
    except (ValueError, OSError) as error:
        print(f"{speaker(_MODULE)}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=usage_name(_MODULE), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a folder made by packhaul export, or an id on the hub")
    parser.add_argument("shards", metavar="SHARDS", help="a shard directory")
    parser.add_argument("--split", choices=("eval", "train"), default="eval")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: scores-SPLIT.jsonl in the model's folder")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="the K-th of N equal parts of the packed rows")
    parser.add_argument("--batch_tokens", type=int, default=4096, metavar="N", help="most tokens of a batch")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="documents to show at the end")
    return parser


def _score(options: argparse.Namespace) -> None:
    number, parts = _part(options.part)
    if options.batch_tokens < 1 or options.worst < 0:
        raise ValueError("--batch_tokens and --worst: expected numbers of at least 1 and 0")
    from data_prep.packed_rows import PackedRows
    from data_prep.shards import manifest_sha256, read_manifest
    from train.scoring.file import ScoreFile, read_scores
    from train.serving.loaded_models import check_folder

    check_folder(options.model)
    manifest = read_manifest(options.shards)
    rows = PackedRows(options.shards, manifest, options.split)
    first, end = (len(rows) * (number - 1) // parts, len(rows) * number // parts)
    head = {"model": options.model, "manifest_sha256": manifest_sha256(options.shards), "split": options.split}
    file = ScoreFile(_output(options, number, parts), {**head, "packed_rows": [first, end]})
    done = file.done(CHUNK)
    names = [source["name"] for source in manifest["sources"]]
    origin = _origins(options.shards, manifest, options.split)
    _score_rest(options, rows, range(first, end), done, file, (names, origin))
    file.finish()
    _report(read_scores(file.path)[1], options, rows, file.path)


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"--part: expected K/N with K from 1 to N, such as 2/8, found {text!r}")
    return int(number), int(parts)


def _output(options: argparse.Namespace, number: int, parts: int) -> Path:
    folder = Path(options.model) if Path(options.model).is_dir() else Path()
    path: Path = options.output or folder / f"scores-{options.split}.jsonl"
    return path if parts == 1 else path.with_name(f"{path.stem}-{number}-of-{parts}{path.suffix}")


def _origins(shards: str, manifest: Any, split: str) -> Any:
    """(source, raw row) of a document by its number in the split; None for shards that do not say."""
    from data_prep.provenance import SIBLING, Provenance

    if "documents" not in manifest:
        return lambda number: None
    provenance = Provenance.open(shards, manifest)
    uses, records = provenance.uses[split], provenance.records
    return lambda number: int(records[uses[number]]["row"]) % SIBLING


def _score_rest(options: Any, rows: PackedRows, chosen: range, done: int, file: Any, named: tuple[Any, Any]) -> None:
    """Score the documents of the chosen rows but for the first `done`."""
    waiting, (names, origin) = islice(_documents(rows, chosen), done, None), named
    total = int(rows.first_document[chosen.stop] - rows.first_document[chosen.start])
    if done >= total:
        return
    from tqdm import tqdm

    from train.scoring.losses import score
    from train.serving.loaded_models import load

    model = load(options.model).model
    with tqdm(total=total, initial=done, unit="document", disable=not sys.stderr.isatty()) as bar:
        while chunk := list(islice(waiting, CHUNK)):
            scores = score(model, [document for _, _, document in chunk], options.batch_tokens)
            file.add(
                {
                    "source": names[document.source],
                    "raw_row": origin(number),
                    "packed_row": row,
                    "document": number,
                    "tokens": int(document.input_ids.size),
                    "trained_tokens": document.trained_tokens,
                    "loss": one.loss if one.loss == one.loss else None,
                    "accuracy": one.accuracy if one.accuracy == one.accuracy else None,
                }
                for (number, row, document), one in zip(chunk, scores, strict=True)
            )
            bar.update(len(chunk))


def _documents(rows: PackedRows, chosen: range) -> Iterator[tuple[int, int, PackedDocument]]:
    """(number in the split, packed row, document)."""
    for row in chosen:
        first = int(rows.first_document[row])
        for place, document in enumerate(rows.documents(row)):
            yield first + place, row, document


def _report(scores: list[dict[str, Any]], options: Any, rows: PackedRows, path: Path) -> None:
    """Losses over tokens, and the worst documents."""
    print(f"{speaker(_MODULE)}: {path}: {len(scores):,} documents of the {options.split} split")
    trained = [one for one in scores if one["loss"] is not None]
    for name in dict.fromkeys(one["source"] for one in trained):
        mine = [one for one in trained if one["source"] == name]
        tokens = sum(one["trained_tokens"] for one in mine)
        means = (sum(one[what] * one["trained_tokens"] for one in mine) / tokens for what in ("loss", "accuracy"))
        loss, accuracy = means
        print(f"  {name}: loss {loss:.4f}, token accuracy {accuracy:.4f}, {tokens:,} tokens of {len(mine):,} documents")
    worst = sorted(trained, key=lambda one: -one["loss"])[: options.worst]
    if worst:
        _show(worst, options, rows)


def _show(worst: list[dict[str, Any]], options: Any, rows: PackedRows) -> None:
    from train.scoring.texts import document_of, load_tokenizer

    tokenizer = load_tokenizer(Path(options.shards))
    for one in worst:
        text = tokenizer.decode(document_of(one, rows).input_ids.tolist()).replace("\n", " ")
        cut = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
        origin = f"{one['source']}:{one['raw_row']}" if one["raw_row"] is not None else one["source"]
        print(f"  {one['loss']:.3f}  {origin}  {cut}")


if __name__ == "__main__":
    sys.exit(main())
