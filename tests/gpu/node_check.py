"""The node check's GPU part on this machine: `packhaul check-nodes --gpus-only`, its findings as figures.

python -m tests.gpu.node_check [--dry-run]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys

from tests.gpu import figures, stand_in_gpu
from train import check_nodes
from train.node_check import adding_up, gpus


def main(argv: list[str] | None = None) -> int:
    """The exit code of the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU that stands in for two GPUs")
    if parser.parse_args(argv).dry_run:
        gpus.CHILD = adding_up.CHILD = stand_in_gpu.CHILD
        os.environ["PACKHAUL_MIN_GPU_SPEED"] = "0"  # other work beside it makes one of the two slow
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = check_nodes.main(["--gpus-only"])
    print(said.getvalue(), flush=True)
    found = json.loads(said.getvalue().splitlines()[-1])
    for gpu in found.pop("gpus"):
        figures.note({f"gpu{gpu['index']}": gpu})
    figures.note({"node": found if code == 0 else {**found, "error": "; ".join(found["problems"])}})
    return code


if __name__ == "__main__":
    sys.exit(main())
