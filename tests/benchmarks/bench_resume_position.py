"""Time from the resume to the first batch, at step 10 and at step 100,000 (a simulated position).

    python -m tests.benchmarks.bench_resume_position [--processes 8] [--rows 64]

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
from typing import Any

FEW, MANY = 10, 100_000


def main() -> int:
    """Both ways at both steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="of a step, over all processes")
    options = parser.parse_args()
    import accelerate

    from train.data_position import skip_batches

    ours, theirs = (
        [seconds(skip, step, options.processes, options.rows) for step in (FEW, MANY)]
        for skip in (skip_batches, accelerate.skip_first_batches)
    )
    figures = {f"seconds_at_{step}": round(s, 3) for step, s in zip((FEW, MANY), ours, strict=True)}
    figures |= {"ratio": round(ours[1] / ours[0], 2), "accelerate_ratio": round(theirs[1] / theirs[0], 2)}
    print(json.dumps({"processes": options.processes, "rows_per_step": options.rows, **figures}))
    return 0


def seconds(skip: Any, step: int, processes: int, rows: int) -> float:
    """Processor seconds, the median of three."""
    from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
    from torch.utils.data import DataLoader

    dataset = range(rows * (MANY + 100))
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
