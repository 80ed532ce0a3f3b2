"""One page of a run, or of several side by side: curves, evaluations, answers, checkpoints, options.

    python -m train.report RUN_DIR... [--output FILE]

One file without scripts or links, by default report.html in the first RUN_DIR. A run that evaluates writes it itself at
each evaluation, so that it can be opened while it trains. Reads the run directory alone; ends with 2 if there is
nothing to report.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.program_name import speaker, usage_name


def main(argv: list[str] | None = None) -> int:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(
        prog=usage_name("train.report"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="output_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first RUN_DIR")
    asked = parser.parse_args(argv)
    from train.run.atomic_files import write_text_atomically
    from train.run_report.page import render
    from train.run_report.run_files import read_run

    output = asked.output or asked.run_dirs[0] / "report.html"
    try:
        page = render([read_run(path) for path in asked.run_dirs])
        write_text_atomically(output, page)
    except (ValueError, OSError) as error:
        print(f"{speaker('train.report')}: error: {error}", file=sys.stderr)
        return 2
    print(f"{speaker('train.report')}: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
