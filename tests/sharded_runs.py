"""Run under `accelerate launch` by test_modes_sharded.py: train.sft once for each run config, in the same processes.

sharded_runs.py CONFIG.yaml ...
"""

from __future__ import annotations

import os
import sys

from tests.in_process import as_a_fresh_process
from train.sft import main

if __name__ == "__main__":
    for config in sys.argv[1:]:
        with as_a_fresh_process():
            code = main(["--config", config])
        if code:
            sys.exit(f"{config}: train.sft ended with {code}")
        print(f"rank {os.environ['RANK']} has run {config}", flush=True)
