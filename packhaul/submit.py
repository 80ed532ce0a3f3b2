"""`packhaul submit`: `slurm/submit.sh` with the same words, from the repository's root or a folder below it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from data_prep.program_name import refusal

SCRIPT = Path("slurm/submit.sh")
_BESIDE = Path(__file__).resolve().parents[1]  # the repository, where the package is not installed from a wheel


def main(argv: list[str]) -> int:
    """The exit code of slurm/submit.sh."""
    try:
        script = find_script()
    except ValueError as error:
        raise refusal("packhaul.submit", error) from None
    return subprocess.run([str(script), *argv]).returncode


def find_script() -> Path:
    """slurm/submit.sh of the current folder, of the next one above that has it, or next to this package.

    Raises:
        ValueError: there is none in these places; names them.
    """
    for place in _places():
        if (place / SCRIPT).is_file():
            return place / SCRIPT
    raise ValueError(
        f"there is no {SCRIPT} in {Path.cwd()} and the folders above it, nor in {_BESIDE}: SLURM's scripts and "
        "slurm/env.sh belong to the repository, not to the installed package: start in the repository's root"
    )


def _places() -> Iterator[Path]:
    here = Path.cwd()
    yield from (here, *here.parents, _BESIDE)
