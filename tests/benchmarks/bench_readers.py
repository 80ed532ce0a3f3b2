"""How fast, and in how much memory, files of each form are cut into slices and read: seconds, MB/s, peak GiB.

    python -m tests.benchmarks.bench_readers [--size-gb 0.5] [--forms jsonl csv ...] [--folder DIR]

Each form holds the same rows (English and Korean, some cells with line ends and quotes), as many as make `--size-gb` GB
of JSON lines; each is measured in a process of its own. Parquet has row groups of up to a million rows, as pyarrow
writes them, and Arrow batches of 1,000. Megabytes are those of the plain JSON lines, whatever the form. The last line
is JSON:
{"rows": N, "forms": {FORM: {"seconds", "slice_seconds", "mb_per_s", "peak_gib"}}}.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "Explain how the weather differs from the climate, and give an example of each. ",
    "다음 문장을 더 자연스럽게 고쳐 쓰세요. 뜻은 그대로 두고 문체만 바꾸면 됩니다. ",
    'He said: "it depends, on what, exactly?"\nThen he left, [and] {nobody} spoke. ',
)


def main(argv: list[str] | None = None) -> int:
    """Measure the forms asked for; 0 when all rows came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-gb", type=float, default=0.5, help="GB (1e9 bytes) of plain JSON lines (default 0.5)")
    parser.add_argument("--forms", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--folder", type=Path, help="where to write the files (a temporary folder)")
    parser.add_argument("--rows-per-slice", type=int, default=10_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.rows_per_slice)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(run(Path(folder), arguments)))
    return 0


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write, measure and delete one file after the other."""
    size = int(arguments.size_gb * 1e9)
    num_rows = size // (sum(len(json_line(row)) for row in islice(rows(), 3000)) // 3000)
    forms = {}
    for form in arguments.forms:
        path = folder / f"rows.{form}"
        WRITERS[form](path, num_rows)
        command = [sys.executable, "-m", "tests.benchmarks.bench_readers", "--measure", str(path)]
        command += ["--rows-per-slice", str(arguments.rows_per_slice)]
        environment = {**os.environ, "PACKHAUL_CACHE": str(folder / "cache")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if found.pop("rows") != num_rows:
            raise SystemExit(f"{form}: not all of the {num_rows} rows came back")
        forms[form] = {**found, "mb_per_s": round(size / 1e6 / found["seconds"], 1)}
        print(f"{form:14}", *(f"{key} {value}" for key, value in forms[form].items()), file=sys.stderr)
        path.unlink()
        for copy in (folder / "cache").glob("*"):
            copy.unlink()
    return {"rows": num_rows, "forms": forms}


def measure(path: Path, rows_per_slice: int) -> dict[str, Any]:
    """Cut and read the file, in this process."""
    from data_prep.recipe import Source
    from data_prep.sources.slices import read_slice, slice_source

    stated = {"encoding": "gb18030"} if "gb18030" in path.name else {}  # Korean in it is not clear to the detection
    source = Source(name="bench", path=str(path), form="alpaca", **stated)
    started = time.monotonic()
    slices = slice_source(source, rows_per_slice)
    sliced = time.monotonic()
    count = sum(isinstance(row.value, dict) for piece in slices for row in read_slice(source, piece))
    seconds = time.monotonic() - started
    return {
        "rows": count,
        "seconds": round(seconds, 4),
        "slice_seconds": round(sliced - started, 4),
        "peak_gib": round(peak_bytes() / 2**30, 3),
    }


def peak_bytes() -> int:
    """The most memory that this process has had resident. Unlike ru_maxrss it does not count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# The files.


def rows() -> Iterator[dict[str, str]]:
    """Rows without end, all different, 80 to 4,000 characters."""
    number = 0
    while True:
        text = TEXTS[number % 3] * (1 + number * 7919 % 40)
        yield {"instruction": f"{number}. {TEXTS[number % 3]}", "output": f"{text}({number})"}
        number += 1


def json_line(row: dict[str, str]) -> bytes:
    """One line of JSON, UTF-8."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_json(path: Path, num_rows: int) -> None:
    """One array, one element per line."""
    with path.open("wb") as file:
        for number, row in enumerate(islice(rows(), num_rows)):
            file.write((b"," if number else b"[") + json_line(row))
        file.write(b"]")


def write_jsonl(path: Path, num_rows: int) -> None:
    """JSON lines, compressed as the name says."""
    with _compressed(path) as file:
        for row in islice(rows(), num_rows):
            file.write(json_line(row))


def _compressed(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", compresslevel=1)
    if path.suffix == ".zst":
        import pyarrow as pa

        return pa.CompressedOutputStream(str(path), "zstd")
    return path.open("wb")


def write_csv(path: Path, num_rows: int) -> None:
    """CSV; in GB18030 where the name says so."""
    with path.open("w", encoding="gb18030" if "gb18030" in path.name else "utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "output"])
        writer.writeheader()
        writer.writerows(islice(rows(), num_rows))


def write_parquet(path: Path, num_rows: int) -> None:
    """Parquet, from a table in memory: a row group is written as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_batches(_batches(num_rows)), path)


def write_arrow(path: Path, num_rows: int) -> None:
    """An Arrow stream."""
    import pyarrow as pa

    batches = _batches(num_rows)
    first = next(batches)
    with pa.ipc.new_stream(str(path), first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)


def _batches(num_rows: int) -> Iterator[Any]:
    import pyarrow as pa

    source = islice(rows(), num_rows)
    while some := list(islice(source, 1000)):
        yield pa.RecordBatch.from_pylist(some)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "gb18030.csv": write_csv,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "jsonl.gz": write_jsonl,
    "jsonl.zst": write_jsonl,
}


if __name__ == "__main__":
    sys.exit(main())
