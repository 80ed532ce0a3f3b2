"""`packhaul checkpoint`: list, verify and prune the checkpoints of a run, without torch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name
from train.checkpoint import folders
from train.checkpoint.folders import MARKER, Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is well; 1 when `verify` found damage; 2 when something has to be changed first."""
    options = _parse(argv)
    try:
        if not options.run_dir.is_dir():
            raise ValueError(f"{options.run_dir}: expected a run directory or a checkpoint in it, found no folder")
        return {"list": _list, "verify": _verify, "prune": _prune}[options.command](options)
    except ValueError as error:
        print(f"{speaker('train.checkpoint')}: error: {error}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog=usage_name("train.checkpoint"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="every checkpoint, whether it is complete, and what else a kill left")
    verify = commands.add_parser("verify", help="read every file and compare it with what was written")
    prune = commands.add_parser("prune", help="delete old checkpoints and leftovers; never the newest nor the best")
    for command in (listing, verify, prune):
        command.add_argument("run_dir", type=Path, help="the run's output_dir; `verify` takes one checkpoint as well")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="how many to keep, the best one among them")
    prune.add_argument("--dry-run", action="store_true", help="only print what would go")
    return parser.parse_args(argv)


def _list(options: argparse.Namespace) -> int:
    named = folders.named_folders(options.run_dir)
    best = best_of(options.run_dir)
    complete = folders.find_checkpoints(options.run_dir)
    for folder in named:
        try:
            found = folders.read(folder)
        except ValueError as error:
            print(f"{folder.name:<20} NOT USABLE  {error}")
            continue
        marks = _marks(is_newest=found == complete[-1], is_best=folder.name == best)
        print(f"{folder.name:<20} {_describe(found)}{marks}")
    for leftover in folders.leftovers(options.run_dir):
        print(f"{leftover.name:<20} a save or a deletion under way, or cut off: the next start or prune removes it")
    if not named:
        print(f"{options.run_dir}: no checkpoint")
    return 0


def _marks(*, is_newest: bool, is_best: bool) -> str:
    """Such as "  newest, best", behind a checkpoint's description."""
    marks = []
    if is_newest:
        marks.append("newest")
    if is_best:
        marks.append("best")
    return f"  {', '.join(marks)}" if marks else ""


def _describe(found: Checkpoint) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((found.path / MARKER).stat().st_mtime))
    stage = found.extra.get("zero_stage")
    kind = f"ZeRO-{stage}" if stage else "whole states"
    return f"complete  {when}  {found.size / 2**20:,.1f} MiB  {found.world_size} process(es), {kind}"


def _verify(options: argparse.Namespace) -> int:
    if folders.is_checkpoint_name(options.run_dir.resolve().name):
        named = [options.run_dir]
    else:
        named = folders.named_folders(options.run_dir)
        if (options.run_dir / MARKER).exists():  # the final model
            named.append(options.run_dir)
    damaged = sum(not _verify_one(folder) for folder in named)
    print(f"{len(named) - damaged} of {len(named)} complete and unchanged")
    return 1 if damaged else 0


def _verify_one(folder: Path) -> bool:
    try:
        found = folders.read(folder)
    except ValueError as error:
        print(f"DAMAGED  {error}")
        return False
    problems = list(folders.verify(found))
    for problem in problems:
        print(f"DAMAGED  {problem}")
    unknown = sum(record.digest is None for record in found.files.values())
    if unknown:
        print(f"note: {folder.name}: {unknown} file(s) without a digest: only their sizes were compared")
    if not problems:
        print(f"ok       {folder.name}: {len(found.files)} files, {found.size / 2**20:,.1f} MiB")
    return not problems


def _prune(options: argparse.Namespace) -> int:
    from train.run.run_lock import lock

    if options.keep < 1:
        raise ValueError(f"--keep: expected 1 or more, found {options.keep}: the newest checkpoint always stays")
    best_name = best_of(options.run_dir)
    best = Path(best_name) if best_name else None
    if options.dry_run:
        for folder in folders.surplus(options.run_dir, keep=options.keep, best=best):
            print(f"would delete {folder.name}")
        return 0
    with lock(options.run_dir):
        gone = folders.clean(options.run_dir)
        gone += folders.rotate(options.run_dir, keep=options.keep, best=best)
    for folder in gone:
        print(f"deleted {folder.name}")
    return 0


def best_of(run_dir: Path) -> str | None:
    """The name of the best checkpoint so far, as the newest complete one recorded it."""
    complete = folders.find_checkpoints(run_dir)
    if not complete:
        return None
    try:
        state = json.loads((complete[-1].path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Path(state["best_model_checkpoint"]).name if state.get("best_model_checkpoint") else None


if __name__ == "__main__":
    sys.exit(main())
