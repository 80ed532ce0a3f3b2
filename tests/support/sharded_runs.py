"""In worlds of test_modes_sharded.py: train.sft once for each run config, in the same processes."""

from __future__ import annotations

import os
import sys
from typing import Any

from transformers import modeling_utils

from tests.support.in_process import as_a_fresh_process
from train import sft


def tell_who_reads() -> None:
    """Print where each process puts a weights file that it reads whole."""
    read = modeling_utils.load_state_dict

    def telling(*args: Any, map_location: Any = "cpu", **kwargs: Any) -> Any:
        print(f"rank {os.environ['RANK']} reads weights to {map_location}", flush=True)
        return read(*args, map_location=map_location, **kwargs)

    modeling_utils.load_state_dict = telling


def run(config: str) -> None:
    """Train, and tell that this process has; another end than 0 ends the process."""
    with as_a_fresh_process():
        code = sft.main(["--config", config])
    if code:
        sys.exit(f"{config}: train.sft ended with {code}")
    print(f"rank {os.environ['RANK']} has run {config}", flush=True)


def main(configs: list[str]) -> int:
    """Each of the runs."""
    tell_who_reads()
    for config in configs:
        run(config)
    return 0
