"""The plan stage on synthetic documents: seconds of one process and peak memory.

    python -m tests.benchmarks.bench_plan [--documents 10000000] [--sources 4] [--curve 1000000 3000000 20000000]

The parts' indices are written first, as the tokenize stage leaves them; then a fresh process does what
`data_prep.prepare --stage plan` does: duplicates, eval split, weighted mixture, global packing, plan written. Lengths
are log-normal, like those of instruction data; 2 % are duplicates, and of 20 % another document has the question. The
last line is JSON with `documents`, `seconds`, `cpu_seconds` (what other work on the machine does to the clock it does
not do to these), `peak_gib` of the process, `efficiency`.

With --curve, these sizes are measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import numpy as np

from data_prep.atomic_files import to_json
from data_prep.recipe import Recipe
from data_prep.sources.slices import Slice
from data_prep.stages.parts import Part

SEQ_LEN = 4096
PART_DOCUMENTS = 5000  # as rows_per_slice


def main(argv: list[str] | None = None) -> int:
    """Write the parts, then measure a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--curve", type=int, nargs="*", default=[], help="more numbers of documents")
    parser.add_argument("--folder", type=Path, help="(internal) the parts are there: measure")
    arguments = parser.parse_args(argv)
    if arguments.folder:
        print(json.dumps(measure(arguments.folder, arguments.documents, arguments.sources)))
        return 0
    sizes = sorted({arguments.documents, *arguments.curve})
    curve = {size: in_own_process(size, arguments.sources) for size in sizes}
    command = " ".join(["python -m tests.benchmarks.bench_plan", *(sys.argv[1:] if argv is None else argv)])
    result = {"command": command, "load": round(os.getloadavg()[0], 1), **curve[arguments.documents]}
    if len(sizes) > 1:
        result["curve"] = list(curve.values())
    print(json.dumps(result))
    return 0


def in_own_process(documents: int, sources: int) -> dict[str, float]:
    """Write the parts and measure a process that plans them."""
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder), documents, sources)
        command = [sys.executable, "-m", "tests.benchmarks.bench_plan", "--folder", folder]
        command += ["--documents", str(documents), "--sources", str(sources)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(done.stdout.strip(), file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def parts_of(folder: Path, documents: int, sources: int) -> list[Part]:
    """The parts, source by source."""
    per_source = documents // sources
    parts = []
    for source in range(sources):
        for index in range(-(-per_source // PART_DOCUMENTS)):
            parts.append(Part(folder, slice_of(f"s{source}", index)))
    return parts


def slice_of(source: str, index: int) -> Slice:
    """A slice that only names the part."""
    fields = dict.fromkeys(Slice.__dataclass_fields__, 0)
    return Slice(**{**fields, "source": source, "index": index, "path": None})


def write_parts(folder: Path, documents: int, sources: int) -> None:
    """What the tokenize stage leaves, but for the tokens."""
    random = np.random.default_rng(0)
    for part in parts_of(folder, documents, sources):
        size = min(PART_DOCUMENTS, documents // sources - part.slice.index * PART_DOCUMENTS)
        length = np.clip(random.lognormal(5, 0.9, size).astype(np.int32), 8, SEQ_LEN)
        content = random.integers(0, 2**63, size).astype(np.uint64)
        content[: size // 50] = content[-(size // 50) :] if size >= 50 else content[:0]
        group = random.integers(0, 2**63, size).astype(np.uint64)
        group[: size // 10] = group[size - size // 10 :]
        row = np.arange(size, dtype=np.int64) + part.slice.index * PART_DOCUMENTS
        arrays = {"row": row, "length": length, "trained": length // 2}
        arrays |= {"content": content, "tokens": content, "group": group}
        np.savez(part.file(".npz"), **arrays, task_type=np.zeros(size, dtype=np.uint8))
        counts = {"rows": size, "kept": size, "documents": size, "tokens": int(length.sum())}
        counts |= {"trained_tokens": int((length // 2).sum()), "dropped": {}, "changed": {}, "places": {}, "turns": {}}
        counts |= {"lost_tokens": {}, "unseen": [], "unread": [], "ungrouped": 0, "first_dropped": {}}
        part.file(".json").write_bytes(to_json(counts))


def measure(folder: Path, documents: int, sources: int) -> dict[str, float]:
    """Seconds and memory of the plan, which is one thread."""
    from data_prep.stages.plan_stage import plan

    weights = [{"name": f"s{i}", "path": "x", "form": "alpaca", "weight": i + 1} for i in range(sources)]
    recipe = Recipe.model_validate({"tokenizer": "t", "seq_len": SEQ_LEN, "sources": weights, "max_repeats": 2})
    wall, cpu = time.perf_counter(), time.process_time()
    summary = plan(parts_of(folder, documents, sources), recipe, folder / "plan")
    return {
        "documents": documents,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "efficiency": summary["splits"]["train"]["efficiency"],
        "uses": summary["splits"]["train"]["documents"],
    }


if __name__ == "__main__":
    sys.exit(main())
