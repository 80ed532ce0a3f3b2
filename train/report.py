"""One page of a run, or of several side by side: curves, restarts, answers, checkpoints, data, options, commands.

    packhaul report RUN_DIR... [--output FILE] [--scores FILE...]

One file without scripts or links, by default report.html in the first RUN_DIR. A run that evaluates writes it itself at
each evaluation, so that it can be opened while it trains. Reads the run directories and the shards; ends with 2 if
there is nothing to report. With --scores, files of `packhaul score`: the documents of each source with the highest
loss, and of two models those that changed most.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name


def main(argv: list[str] | None = None) -> int:
    """Write the page and say where it is."""
    asked = _parser().parse_args(argv)
    output = asked.output or asked.run_dirs[0] / "report.html"
    try:
        _write(asked.run_dirs, asked.scores, output)
    except (ValueError, OSError) as error:
        print(f"{speaker('train.report')}: error: {error}", file=sys.stderr)
        return 2
    print(f"{speaker('train.report')}: {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=usage_name("train.report"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="output_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first RUN_DIR")
    parser.add_argument(
        "--scores", nargs="+", type=Path, default=[], metavar="FILE", help="of one model, or of the base and the tuned"
    )
    return parser


def _write(run_dirs: list[Path], scores: list[Path], output: Path) -> None:
    if scores and len(run_dirs) > 1:
        raise ValueError("--scores: expected one RUN_DIR, found several: make the page of the run that was scored")
    from train.run.atomic_files import write_text_atomically
    from train.run_report.page import render
    from train.run_report.run_files import read_run
    from train.run_report.scores import section

    runs = [read_run(path) for path in run_dirs]
    write_text_atomically(output, render(runs, section(scores, runs[0].record)))


if __name__ == "__main__":
    sys.exit(main())
