"""Preparation against the tokenizer's own speed and against TRL, in one run, with two workers.

    python -m tests.benchmarks.bench_prepare --data ../shared/data [--num-workers 2] [--repeats 3]
        [--tokenizers qwen3 gemma3] [--encoders fastokens] [--processor-time PARTS]

Alpaca 52k, the Qwen3 tokenizer with ChatML and the Gemma 3 tokenizer with gemma's template, seq_len 4,096. Measured are
the stages tokenize, plan and pack, through `tokenizers` and through each faster encoder that there is, in turn with
`encode_batch` of `tokenizers` on the same rendered texts, on all cores of one process. Before the clock runs the inputs
have been looked at and all processes have loaded the tokenizer: so has that of encode_batch, and the command does it
while it works out what the parts are called. What makes an encoder faster has been proven exact, which the command does
when it starts. TRL's trainer prepares the same rows with as many processes, its tokenizer loaded too. The last line is
JSON, of Qwen3, and under `gemma3` of Gemma 3.

On a machine with much other work, `--processor-time PARTS` takes a few minutes: it tokenizes the first parts in this
process, in turn with encode_batch on their texts, on one core, and gives seconds of processor time per million tokens
(`cpu`), their ratio (`share_of_raw_cpu`) and the profile. Otherwise there are:

    share_of_raw         by encoder: tokens/s as a share of encode_batch's: the median over the repeats, each against
                         encode_batch just before and just after it
    share_of_raw_cpu     the same per second of processor time, all processes together
    share_of_raw_tuned   share_of_raw of `tokenizers` against encode_batch with what we tell `tokenizers` too: words
                         that are tokens looked up, more words remembered, and the first encodings never freed
    ratio_to_trl         by encoder: tokens/s over TRL's
    worker_seconds       by encoder: until all workers had loaded the tokenizer
    efficiency           of packing, by seq_len
    cpu                  seconds of processor time, of all processes, per million tokens: what other work on the machine
                         does to the clock it does not do to these
    profile              by encoder: CPU seconds of the first slice by step, in one process, and its rows
    command_seconds      by encoder: the whole command, imports, proof of the encoder and report included
    load                 the machine's load average before and after: above num_workers, the clock is not to be trusted
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import yaml

from tests.benchmarks.prepare_cases import (
    CASES,
    ENCODERS,
    Case,
    choose,
    open_job,
    processor_time,
    profile,
    rendered_texts,
    untouched,
)

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets and tokenizers")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizers", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--processor-time", type=int, default=0, help="tokenize so many parts in this process, no more")
    arguments = parser.parse_args(argv)
    data = arguments.data.resolve()
    load = [round(os.getloadavg()[0], 1)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result: dict[str, Any] = {"num_workers": arguments.num_workers}
        for name in arguments.tokenizers:
            case = CASES[name](data).only(arguments.encoders)
            if arguments.processor_time:
                result[name] = processor_time(case, Path(folder) / name, arguments.processor_time)
                continue
            measured = measure(case, Path(folder) / name, arguments.num_workers, arguments.repeats)
            measured["command_seconds"] = whole_command(case, Path(folder) / name, arguments.num_workers)
            result |= measured if name == "qwen3" else {name: measured}
        if "qwen3" in arguments.tokenizers and not arguments.processor_time:
            result["trl"] = trl_preparation(data, arguments.num_workers)
            result["cpu"]["trl"] = result["trl"].pop("cpu")
            theirs = result["trl"]["tokens_per_second"]
            ours = result["tokens_per_second"].items()
            result["ratio_to_trl"] = {name: round(rate / theirs, 2) for name, rate in ours if name in ENCODERS}
        load.append(round(os.getloadavg()[0], 1))
    command = "python -m tests.benchmarks.bench_prepare --data FOLDER"
    if len(arguments.encoders) < len(ENCODERS):
        command += f" --encoders {' '.join(arguments.encoders)}"
    if arguments.processor_time:
        command += f" --processor-time {arguments.processor_time}"
    print(json.dumps({"command": command, **result, "load": load}))
    return 0


def measure(case: Case, folder: Path, num_workers: int, repeats: int) -> dict[str, Any]:
    """Our rates and the raw one, in turn, so that a machine whose speed drifts is the same to all."""
    from data_prep.stages.pool import Workers, start_server
    from data_prep.tokenization.text_encoder import TextEncoder

    start_server()
    backend, texts = rendered_texts(case, folder)
    plain, encoder_of_ours = untouched(backend), TextEncoder(untouched(backend))
    encoder_of_ours.look_words_up()
    tuned = encoder_of_ours.backend
    held = tuned.encode_batch(texts, add_special_tokens=False)  # as TextEncoder holds its first ones
    rates: dict[str, list[float]] = {name: [] for name in ("raw", "raw_tuned", *case.encoders)}
    cpu: dict[str, list[float]] = {name: [] for name in rates}
    efficiency, worker_seconds = {}, {}

    def run(name: str, work: Callable[[], tuple[int, Any]]) -> Any:
        cpu_before, before = processor_seconds(), time.perf_counter()
        tokens, result = work()
        rates[name].append(tokens / (time.perf_counter() - before))
        cpu[name].append((processor_seconds() - cpu_before) / tokens * 1e6)
        return result

    def run_raw() -> None:
        run("raw", lambda: raw(plain, texts))
        run("raw_tuned", lambda: raw(tuned, texts))

    for repeat in range(repeats):
        for encoder in case.encoders:
            run_raw()
            job = ready_job(case, folder / f"{encoder}-{repeat}", 4096, encoder)
            with Workers(num_workers, (job.recipe, job.renderer, job.described)) as workers:
                worker_seconds[encoder] = loaded(workers, num_workers)
                efficiency["4096"] = run(encoder, partial(staged, job, workers, num_workers))
    run_raw()
    del held
    for seq_len in case.seq_lens:
        if str(seq_len) not in efficiency:
            job = ready_job(case, folder / str(seq_len), seq_len, case.encoders[-1])
            with Workers(num_workers, (job.recipe, job.renderer, job.described)) as workers:
                efficiency[str(seq_len)] = staged(job, workers, num_workers)[1]
    per_cpu_second = {name: [1 / seconds for seconds in values] for name, values in cpu.items()}
    return {
        "rows": len(texts),
        "share_of_raw": shares(rates, case.encoders),
        "share_of_raw_cpu": shares(per_cpu_second, case.encoders),
        "share_of_raw_tuned": shares(rates, case.encoders, "raw_tuned").get("tokenizers"),
        "worker_seconds": worker_seconds,
        "efficiency": dict(sorted(efficiency.items(), key=lambda item: int(item[0]))),
        "tokens_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "all_rates": {name: [round(value) for value in values] for name, values in rates.items()},
        "cpu": {name: round(statistics.median(values), 2) for name, values in cpu.items()},
        "profile": {name: profile(case, folder / f"profile-{name}", name) for name in case.encoders},
    }


def shares(rates: dict[str, list[float]], encoders: tuple[str, ...], other: str = "raw") -> dict[str, float]:
    """By encoder: the median of each rate over the raw ones just before and after it."""
    result = {}
    for place, name in enumerate(encoders):
        before = [place + repeat * len(encoders) for repeat in range(len(rates[name]))]
        around = [statistics.mean(rates[other][i : i + 2]) for i in before]
        result[name] = round(statistics.median(a / b for a, b in zip(rates[name], around, strict=True)), 3)
    return result


def processor_seconds() -> float:
    """Of this process and of all workers: the server that they are forked from counts those that have ended."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    fields = {path.parent.name: _stat_fields(path) for path in Path("/proc").glob("[0-9]*/stat")}
    ticks = 0
    for number, values in fields.items():
        if number == str(server._forkserver_pid) or values[1:2] == [str(server._forkserver_pid)]:
            ticks += sum(map(int, values[11:15]))  # its own and, if they have ended, its children's
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _stat_fields(path: Path) -> list[str]:
    """What Linux says of a process after its name; nothing if it has just ended."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def raw(backend: Any, texts: list[str]) -> tuple[int, None]:
    """Tokens of encode_batch, on all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encodings), None


def ready_job(case: Case, output: Path, seq_len: int, encoder: str) -> Any:
    """What is done before the clock runs."""
    job = open_job(case, output, seq_len)
    choose(job, encoder)
    assert job.parts  # whose names are worked out now
    return job


def loaded(workers: Any, num_workers: int) -> float:
    """Seconds until each worker has taken one of as many pieces of work."""
    started = time.perf_counter()
    workers.run(_pause, [1.0] * num_workers, "load")
    return round(time.perf_counter() - started - 1, 2)


def _pause(seconds: float, _: Any) -> None:
    """As long as a worker may start after another."""
    time.sleep(seconds)


def staged(job: Any, workers: Any, num_workers: int) -> tuple[int, float]:
    """Run the three stages: tokens, and the efficiency of packing."""
    from data_prep import prepare
    from data_prep.stages.tokenize_stage import tokenize_part

    workers.run(tokenize_part, job.parts, "tokenize")
    prepare._plan(job)
    prepare._pack(job, num_workers, (0, 1))
    splits = job.summary()["splits"]
    return sum(split["tokens"] for split in splits.values()), splits["train"]["efficiency"]


def trl_preparation(data: Path, num_workers: int) -> dict[str, float]:
    """TRL's own preparation of the same rows: a process of its own, in which SFTTrainer is made."""
    command = [sys.executable, "-m", "tests.benchmarks.trl_preparation"]
    command += ["--data", str(data), "--num-proc", str(num_workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def whole_command(case: Case, folder: Path, num_workers: int) -> dict[str, float]:
    """Seconds of `python -m data_prep.prepare`, by encoder."""
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump(case.recipe(4096)), encoding="utf-8")
    seconds = {}
    for encoder in case.encoders:
        command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(path), "--encoder", encoder]
        command += ["--output", str(folder / f"whole-{encoder}"), "--num-workers", str(num_workers)]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
        seconds[encoder] = round(time.perf_counter() - started, 2)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
