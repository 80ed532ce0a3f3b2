"""Memory of the whole preparation, by process, on a file of any size.

    python -m tests.benchmarks.bench_memory [--size-gb 2] [--num-workers 2] [--folder DIR]

JSON lines (English and Korean, 80 to 4,000 characters a row) are generated and prepared with a small tokenizer of their
own words; each process is looked at twice a second. Resident memory counts pages of memory-mapped files too, which the
kernel can take back at any time; anonymous memory is what a process holds. The last line is JSON:
{"size_gb", "rows", "tokens", "seconds", "num_workers", "peak_gib_per_worker", "anonymous_gib_per_worker",
"stages": {STAGE: {"peak_gib", "anonymous_gib", "private_gib", "pss_gib"}}}, each of the process that has most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.benchmarks.bench_readers import ROOT, TEXTS, json_line, rows, write_jsonl

SEQ_LEN = 4096
SPECIAL = ["<|im_start|>", "<|im_end|>"]
GIB = 2**30
# /proc/PID/smaps_rollup -> ours. Rss is the peak, which the kernel keeps, where /proc/PID/status has it.
MEASURES = {"Rss": "peak_gib", "Anonymous": "anonymous_gib", "Private": "private_gib", "Pss": "pss_gib"}
SECONDS = 0.5  # between two looks

Peaks = dict[str, dict[str, int]]


def main(argv: list[str] | None = None) -> int:
    """Generate, prepare and watch; 0 when the preparation succeeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-gb", type=float, default=2.0, help="GB (1e9 bytes) of JSON lines (default 2)")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where to write: three times the size and more (a temporary folder)"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        size = int(arguments.size_gb * 1e9)
        num_rows = size // (sum(len(json_line(row)) for row in islice(rows(), 3000)) // 3000)
        write_jsonl(Path(folder) / "rows.jsonl", num_rows)
        result = measure(Path(folder), arguments.num_workers)
        print(json.dumps({"size_gb": arguments.size_gb, "rows": num_rows, **result}))
    return 0


def measure(folder: Path, num_workers: int) -> dict[str, Any]:
    """Prepare the file in this folder."""
    command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(write_recipe(folder))]
    command += ["--output", str(folder / "out"), "--num-workers", str(num_workers)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    peaks = watch(process, folder / "out")
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the preparation failed with {process.returncode}")
    manifest = json.loads((folder / "out/manifest.json").read_text())
    workers = [peaks[stage] for stage in ("tokenize", "pack")]
    return {
        "tokens": sum(source["tokens"] for source in manifest["sources"]),
        "seconds": round(seconds, 1),
        "num_workers": num_workers,
        "peak_gib_per_worker": round(max(w["peak_gib"] for w in workers) / GIB, 3),
        "anonymous_gib_per_worker": round(max(w["anonymous_gib"] for w in workers) / GIB, 3),
        "stages": {stage: {k: round(v / GIB, 3) for k, v in found.items()} for stage, found in peaks.items()},
    }


def watch(process: subprocess.Popen, output: Path) -> Peaks:
    """The largest of each measure, in bytes: of the main process, and of the workers of each stage."""
    peaks: Peaks = defaultdict(lambda: dict.fromkeys(MEASURES.values(), 0))
    stage_of = {process.pid: "main"}
    while process.poll() is None:
        is_planned = any(output.glob(".work/plan-*/plan.json"))
        found = [process.pid]
        with suppress(OSError):  # one may end at any time
            found += workers(process.pid)
        for pid in found:
            with suppress(OSError):
                stage = stage_of.setdefault(pid, "pack" if is_planned else "tokenize")
                for key, value in memory(pid).items():
                    peaks[stage][key] = max(peaks[stage][key], value)
        time.sleep(SECONDS)
    return peaks


def workers(pid: int) -> list[int]:
    """Worker processes: children of the server that they are forked from."""
    servers = [child for child in children(pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [worker for server in servers for worker in children(server)]


def children(pid: int) -> list[int]:
    """Child processes of all threads."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def memory(pid: int) -> dict[str, int]:
    """Bytes of each measure.

    Raises:
        OSError: the process has ended, also where it is not waited for yet: then its memory is gone.
    """
    found: dict[str, int] = dict.fromkeys(MEASURES.values(), 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name = line.split(":")[0].partition("_")[0] if line.startswith("Private") else line.split(":")[0]
        if name in MEASURES:
            found[MEASURES[name]] += int(line.split()[1]) * 1024
    status = Path(f"/proc/{pid}/status").read_text()
    _, is_there, peak = status.partition("VmHWM:")
    if not is_there:
        raise ProcessLookupError(f"process {pid} has ended")
    return {**found, "peak_gib": int(peak.split()[0]) * 1024}


def write_recipe(folder: Path) -> Path:
    """The recipe, and its tokenizer, trained on the texts: nearly one token per word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TEXTS * 10, "system user assistant"] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(folder / "tokenizer")
    source = {"name": "rows", "path": str(folder / "rows.jsonl"), "form": "dolly", "columns": {"response": "output"}}
    recipe = {"tokenizer": str(folder / "tokenizer"), "chat_template": "chatml", "seq_len": SEQ_LEN}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "sources": [source]}))
    return path


if __name__ == "__main__":
    sys.exit(main())
