"""Entry: which documents a step of a run trained, and when a document was trained, or why never.

    packhaul trace RUN --step 1200 [--decode]
    packhaul trace RUN --document SOURCE:ROW
    packhaul trace RUN --text "..."

Shards, data_seed and the rows of a step decide this alone, whatever the world size and however often the run was
resumed. ROW is the number of the raw row in its source, from 0. Nothing is written, and no model is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name

_MODULE = "train.trace"
_MOST = 20  # rows that are shown of those that hold a text
NOT_FOUND = 1


def main(argv: list[str] | None = None) -> int:
    """0; 1 where no document holds the text; 2 when something has to be changed first."""
    options = _parser().parse_args(argv)
    try:
        found = _find(options)
    except (ValueError, OSError) as error:
        print(f"{speaker(_MODULE)}: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, options)
    return 0 if found.get("matches") != [] else NOT_FOUND


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=usage_name(_MODULE), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's output_dir")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, metavar="N", help="list the documents of this optimizer step, from 1")
    what.add_argument("--document", metavar="SOURCE:ROW", help="say in which steps a raw row is trained")
    what.add_argument("--text", help="the same for every raw row whose rendered text holds this one")
    parser.add_argument("--decode", action="store_true", help="with --step: print the documents' texts")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the shard directory, if not where run.json says")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    return parser


def _find(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked for, as --json shows it."""
    place = _place(options.document) if options.document is not None else None
    if options.text == "":
        raise ValueError("--text: expected some text, found none")
    if options.decode and options.step is None:
        raise ValueError("--decode does nothing without --step: leave it out")

    from train.scoring.texts import load_tokenizer
    from train.tracing import documents, run_facts, texts

    facts = run_facts.read_facts(options.run, options.data)
    trace = documents.Trace.open(facts)
    head = {"run": str(options.run), "steps_done": facts.steps_done, "total_steps": facts.total_steps}
    if options.step is not None:
        found = {**head, **trace.step(options.step), "skipped": _skipped(options.run, options.step)}
        _decode(found["documents"], load_tokenizer(facts.data) if options.decode else None)
        return found
    if place is not None:
        return {**head, **trace.document(*place)}
    tokenizer = load_tokenizer(facts.data)
    matches = list(texts.rows_with(options.text, trace.provenance, tokenizer))
    shown = [trace.document(source, row) for source, row in matches[:_MOST]]
    return {**head, "text": options.text, "found": len(matches), "matches": shown}


def _place(text: str) -> tuple[str, int]:
    source, _, row = text.rpartition(":")
    if not source or not row.isdecimal():
        raise ValueError(f"--document: expected SOURCE:ROW, such as faq:17, found {text!r}")
    return source, int(row)


def _skipped(run_dir: Path, step: int) -> str | None:
    """Why a step's update was left out (`on_bad_step`), where its description says so."""
    path = run_dir / "bad_steps" / f"step-{step}.json"
    if not path.exists():
        return None
    return f"{json.loads(path.read_text(encoding='utf-8'))['reason']} ({path})"


def _decode(entries: list[dict[str, Any]], tokenizer: Any) -> None:
    """Put the texts in the place of the ids."""
    for entry in entries:
        ids = entry.pop("ids")
        if tokenizer is not None:
            entry["text"] = tokenizer.decode(ids.tolist())


def _show(found: dict[str, Any], options: argparse.Namespace) -> None:
    if options.step is not None:
        _show_step(found)
    elif options.document is not None:
        _show_document(found)
    else:
        more = f", the first {_MOST} of them" if found["found"] > _MOST else ""
        print(f"{found['found']:,} raw row(s) hold the text{more}")
        for match in found["matches"]:
            _show_document(match)
        if not found["matches"]:
            print(
                "looked at: both splits of the shards, and dropped rows; documents that are not selected are in neither"
            )


def _show_step(found: dict[str, Any]) -> None:
    documents = found["documents"]
    tokens, trained = (sum(entry[key] for entry in documents) for key in ("tokens", "trained_tokens"))
    filler = f" and {found['filler_rows']} filler rows" if found["filler_rows"] else ""
    print(
        f"step {found['step']:,} of {found['total_steps']:,}, epoch {found['epoch']}, {_STATES[found['state']]}: "
        f"{found['packed_rows']} packed rows{filler}, {len(documents):,} documents, {tokens:,} tokens, {trained:,} "
        "trained"
    )
    if found["skipped"]:
        print(f"bad step: {found['skipped']}")
    print(f"{'source':20} {'raw row':>10} {'tokens':>8} {'trained':>8}  {'shard row':26} file")
    for entry in documents:
        place = f"{entry['shard']}[{entry['shard_row']}]"
        numbers = f"{entry['row']:>10} {entry['tokens']:>8} {entry['trained_tokens']:>8}"
        print(f"{entry['source'][:20]:20} {numbers}  {place:26} {entry['file']}")
        if "text" in entry:
            print(entry["text"])


_STATES = {"trained": "trained", "planned": "not reached yet", "never": "after the end of the run"}


def _show_document(found: dict[str, Any]) -> None:
    number = len(found["documents"])
    print(f"{found['source']}:{found['row']} ({found['file']}): {number} document(s)")
    for entry in found["dropped"]:
        print(f"  dropped: {entry['reason']}: {entry['detail']}")
    for document in found["documents"]:
        for use in document["steps"]:
            place = f"{use['shard']}[{use['shard_row']}]"
            print(f"  step {use['step']:,}, epoch {use['epoch']}, {place}: {_STATES[use['state']]}")
        if document["why_not"]:
            print(f"  not trained: {document['why_not']}")
    if not number and not found["dropped"]:
        print("  no document was made of it, and it is not listed as dropped: prepare the data again")


if __name__ == "__main__":
    sys.exit(main())
