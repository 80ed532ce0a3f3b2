"""Preparation against the tokenizer's own speed and against TRL, in one run, with two workers.

    python -m tests.benchmarks.bench_prepare --data ../shared/data [--num-workers 2]

Alpaca 52k, the Qwen3 tokenizer, ChatML, seq_len 4,096. Measured are the stages tokenize, plan and pack, through
`tokenizers` and through the faster encoder, in turn with `encode_batch` of `tokenizers` on the same rendered texts, on
all cores of one process. Before the clock runs the inputs have been looked at and all processes have loaded the
tokenizer: so has that of encode_batch, and the command does it while it works out what the parts are called. What
makes either encoder faster has been proven exact, which the command does when it starts. TRL's trainer prepares the
same rows with as many processes, its tokenizer loaded too. The last line is JSON:

    share_of_raw         tokens/s through `tokenizers`, as a share of encode_batch's: the median over the repeats, each
                         against encode_batch just before and just after it
    share_of_raw_fast    the same through the faster encoder
    share_of_raw_tuned   share_of_raw against encode_batch with what we tell `tokenizers` too: words that are tokens
                         looked up, more words remembered, and the first encodings never freed
    ratio_to_trl         tokens/s through the faster encoder over TRL's (..._tokenizers: through `tokenizers`)
    worker_seconds       until all workers had loaded the tokenizer, by encoder
    efficiency           of packing, by seq_len
    cpu                  seconds of processor time, of all processes, per million tokens: what other work on the machine
                         does to the clock it does not do to these
    profile              CPU seconds of the first slice by step, in one process, and its rows
    command_seconds      the whole command, imports, proof of the encoder and report included
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

import yaml

ROOT = Path(__file__).resolve().parents[2]
SEQ_LENS = (2048, 4096, 8192)
STAGES = ("tokenize", "plan", "pack")


def main() -> int:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets and tokenizers")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    load = [round(os.getloadavg()[0], 1)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(data, Path(folder), arguments.num_workers, arguments.repeats)
        result["trl"] = trl_preparation(data, arguments.num_workers)
        result["cpu"]["trl"] = result["trl"].pop("cpu")
        load.append(round(os.getloadavg()[0], 1))
        result["command_seconds"] = whole_command(data, Path(folder), arguments.num_workers)
    trl = result["trl"]["tokens_per_second"]
    result["ratio_to_trl"] = round(result["tokens_per_second_fast"] / trl, 2)
    result["ratio_to_trl_tokenizers"] = round(result["tokens_per_second"] / trl, 2)
    print(json.dumps({"command": "python -m tests.benchmarks.bench_prepare --data FOLDER", **result, "load": load}))
    return 0


def recipe_of(data: Path, seq_len: int) -> dict[str, Any]:
    """The recipe that is prepared."""
    source = {"name": "alpaca", "path": str(data / "text/en/alpaca_52k.json"), "form": "alpaca"}
    tokenizer = str(data / "tokenizers/qwen3")
    return {"tokenizer": tokenizer, "chat_template": "chatml", "seq_len": seq_len, "sources": [source]}


def measure(data: Path, folder: Path, num_workers: int, repeats: int) -> dict[str, Any]:
    """Our rates and the raw one, in turn, so that a machine whose speed drifts is the same to all."""
    from data_prep.encoded_text import TextEncoder
    from data_prep.pool import Workers, start_server

    start_server()
    backend, texts = rendered_texts(data, folder)
    plain, encoder_of_ours = untouched(backend), TextEncoder(untouched(backend))
    assert encoder_of_ours.look_words_up()
    tuned = encoder_of_ours.backend
    held = tuned.encode_batch(texts, add_special_tokens=False)  # as TextEncoder holds its first ones
    rates: dict[str, list[float]] = {"raw": [], "raw_tuned": [], "tokenizers": [], "auto": []}
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
        for encoder in ("tokenizers", "auto"):
            run_raw()
            job = ready_job(data, folder / f"{encoder}-{repeat}", 4096, encoder)
            with Workers(num_workers, (job.recipe, job.renderer, job.described)) as workers:
                worker_seconds[encoder] = loaded(workers, num_workers)
                efficiency["4096"] = run(encoder, partial(staged, job, workers, num_workers))
    run_raw()
    del held
    for seq_len in SEQ_LENS:
        if str(seq_len) not in efficiency:
            job = ready_job(data, folder / str(seq_len), seq_len, "auto")
            with Workers(num_workers, (job.recipe, job.renderer, job.described)) as workers:
                efficiency[str(seq_len)] = staged(job, workers, num_workers)[1]
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "num_workers": num_workers,
        "rows": len(texts),
        "share_of_raw": share(rates["tokenizers"], rates["raw"]),
        "share_of_raw_fast": share(rates["auto"], rates["raw"][1:]),
        "share_of_raw_tuned": share(rates["tokenizers"], rates["raw_tuned"]),
        "worker_seconds": worker_seconds,
        "efficiency": dict(sorted(efficiency.items(), key=lambda item: int(item[0]))),
        "raw_tokens_per_second": round(middle["raw"]),
        "tokens_per_second": round(middle["tokenizers"]),
        "tokens_per_second_fast": round(middle["auto"]),
        "all_rates": {name: [round(value) for value in values] for name, values in rates.items()},
        "cpu": {name: round(statistics.median(values), 2) for name, values in cpu.items()},
        "profile": {
            encoder: profile(data, folder / f"profile-{encoder}", encoder) for encoder in ("tokenizers", "auto")
        },
    }


def untouched(backend: Any) -> Any:
    """The same tokenizer as `tokenizers` itself loads it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(backend.to_str())


def rendered_texts(data: Path, folder: Path) -> tuple[Any, list[str]]:
    """The tokenizer of `tokenizers`, and every row as ChatML."""
    from data_prep.readers import read_slice
    from data_prep.tokenize_stage import _convert

    job = open_job(data, folder / "texts", 4096)
    source = job.recipe.sources[0]
    texts = []
    for part in job.parts:
        for raw in read_slice(source, part.slice):
            conversation = _convert(raw, source, job.recipe)
            if not isinstance(conversation, Exception):
                texts.append(job.renderer._render_text(conversation)[0])
    return job.renderer.encoder.backend, texts


def open_job(data: Path, output: Path, seq_len: int) -> Any:
    """What `prepare` does before the first stage."""
    from data_prep.job import open_job
    from data_prep.recipe import load_recipe

    output.mkdir(parents=True)
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe_of(data, seq_len)), encoding="utf-8")
    return open_job(load_recipe(path), output)


def share(rates: list[float], raw: list[float]) -> float:
    """The median of each rate over the raw ones before and after it; two steps on, raw is that of the next repeat."""
    around = [statistics.mean(raw[2 * i : 2 * i + 2]) for i in range(len(rates))]
    return round(statistics.median(rate / other for rate, other in zip(rates, around, strict=True)), 3)


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


def ready_job(data: Path, output: Path, seq_len: int, encoder: str) -> Any:
    """What is done before the clock runs."""
    from data_prep import prepare

    job = open_job(data, output, seq_len)
    if encoder == "auto":
        prepare._use_fast_encoder(job)
        assert "tiktoken" in job.renderer.encoder.name, job.renderer.encoder.name
    else:
        assert job.renderer.encoder.look_words_up()
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
    from data_prep.tokenize_stage import tokenize_part

    workers.run(tokenize_part, job.parts, "tokenize")
    prepare._plan(job)
    prepare._pack(job, num_workers, (0, 1))
    splits = job.summary()["splits"]
    return sum(split["tokens"] for split in splits.values()), splits["train"]["efficiency"]


def profile(data: Path, output: Path, encoder: str) -> dict[str, float]:
    """CPU seconds of each step for the first part, step by step, in this process."""
    from data_prep import prepare
    from data_prep.conversation import Conversation
    from data_prep.parts import PartWriter, hashes
    from data_prep.readers import read_slice
    from data_prep.tokenize_stage import _convert, _take

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job = open_job(data, output, 4096)
    if encoder == "auto":
        prepare._use_fast_encoder(job)
    else:
        assert job.renderer.encoder.look_words_up()
    part, recipe, renderer = job.parts[0], job.recipe, job.renderer
    source, seconds = recipe.sources[0], {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        seconds[name] = round(time.process_time() - started, 3)
        return result

    rows = step("read", lambda: list(read_slice(source, part.slice)))
    seconds["rows"] = len(rows)
    converted = step("convert", lambda: [_convert(raw, source, recipe) for raw in rows])
    pairs = [(raw, c) for raw, c in zip(rows, converted, strict=True) if isinstance(c, Conversation)]
    conversations = [c for _, c in pairs]
    step("look for control tokens", lambda: [renderer._control.spelled_in(c) for c in conversations])
    rendered = step("render", lambda: [renderer._render_text(c) for c in conversations])
    tokens = step("encode", lambda: renderer.encoder.encode_batch([text for text, _ in rendered]))
    texts, spans = zip(*rendered, strict=True)
    examples = step("label", lambda: renderer._labeller.label_batch(texts, tokens, spans))
    describe = job.described[source.name].describe
    contents = step("content hash", lambda: [hashes([e])[0] for e in examples])
    step(
        "task type and language",
        lambda: [describe(c, content) for (_, c), content in zip(pairs, contents, strict=True)],
    )
    writer = PartWriter(renderer.encoder.name, job.described[source.name])
    triples = [(raw, c, e) for (raw, c), e in zip(pairs, examples, strict=True)]
    step("the three and the rest", lambda: [_take(*triple, source, recipe, renderer, writer) for triple in triples])
    step("write", lambda: writer.write(part))
    return seconds


def trl_preparation(data: Path, num_workers: int) -> dict[str, float]:
    """TRL's own preparation of the same rows: a process of its own, in which SFTTrainer is made."""
    command = [sys.executable, "-m", "tests.benchmarks.trl_preparation", str(data), str(num_workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def whole_command(data: Path, folder: Path, num_workers: int) -> dict[str, float]:
    """Seconds of `python -m data_prep.prepare`, by encoder."""
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump(recipe_of(data, 4096)), encoding="utf-8")
    seconds = {}
    for encoder in ("tokenizers", "auto"):
        command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(path), "--encoder", encoder]
        command += ["--output", str(folder / f"whole-{encoder}"), "--num-workers", str(num_workers)]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
        seconds[encoder] = round(time.perf_counter() - started, 2)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
