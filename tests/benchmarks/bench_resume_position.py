"""Time from the resume to the first batch, at step 10 and at a late one (a simulated position).

    python -m tests.benchmarks.bench_resume_position [--processes 8] [--rows 64] [--step 100000]

The data loader of one of the processes is taken to the position as a resumed run takes it, and asked for a batch. The
last line is JSON: seconds of the processor for both steps, `ratio`, and `accelerate_ratio`, the same for skipping as
accelerate does it, which iterates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

EARLY = 10


def main(argv: list[str] | None = None) -> int:
    """Both ways at both steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="of a step, over all processes")
    parser.add_argument("--step", type=int, default=100_000, help="the late one")
    options = parser.parse_args(argv)
    steps = (EARLY, options.step)
    import accelerate

    from train.loop.data_position import skip_batches

    ours, theirs = (
        [seconds(skip, step, options.processes, options.rows, max(steps)) for step in steps]
        for skip in (skip_batches, accelerate.skip_first_batches)
    )
    figures = {f"seconds_at_{step}": round(s, 3) for step, s in zip(steps, ours, strict=True)}
    figures |= {"ratio": round(ours[1] / ours[0], 2), "accelerate_ratio": round(theirs[1] / theirs[0], 2)}
    print(json.dumps({"processes": options.processes, "rows_per_step": options.rows, **figures}))
    return 0


def seconds(skip: Any, step: int, processes: int, rows: int, most: int) -> float:
    """Processor seconds, the median of three, in a set of rows that lasts for more than `most` steps."""
    from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
    from torch.utils.data import DataLoader

    dataset = range(rows * (most + 100))
    found = []
    for _ in range(3):
        plain = DataLoader(dataset, batch_size=1, sampler=SeedableRandomSampler(dataset, data_seed=1))
        loader = prepare_data_loader(plain, num_processes=processes, process_index=0, put_on_device=False)
        began = time.process_time()
        next(iter(skip(loader, step * rows // processes)))
        found.append(time.process_time() - began)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
