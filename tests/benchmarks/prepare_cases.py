"""What bench_prepare prepares, by which encoders, and where the time of each step goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

SEQ_LENS = (2048, 4096, 8192)
ENCODERS = tuple(name for name in ("tokenizers", "tiktoken", "fastokens") if find_spec(name))


@dataclass(frozen=True)
class Case:
    """What is prepared, and by which encoders."""

    data: Path
    tokenizer: str
    chat_template: str
    seq_lens: tuple[int, ...]
    encoders: tuple[str, ...]

    def only(self, encoders: Collection[str]) -> Case:
        """The same by these encoders alone."""
        return replace(self, encoders=tuple(name for name in self.encoders if name in encoders))

    def recipe(self, seq_len: int) -> dict[str, Any]:
        """The recipe that is prepared."""
        source = {"name": "alpaca", "path": str(self.data / "text/en/alpaca_52k.json"), "form": "alpaca"}
        tokenizer = str(self.data / "tokenizers" / self.tokenizer)
        return {
            "tokenizer": tokenizer,
            "chat_template": self.chat_template,
            "seq_len": seq_len,
            "sources": [source],
        }


def qwen3(data: Path) -> Case:
    """A byte-level BPE tokenizer."""
    return Case(data, "qwen3", "chatml", SEQ_LENS, ENCODERS)


def gemma3(data: Path) -> Case:
    """A BPE tokenizer that writes spaces as a sign."""
    return Case(data, "gemma3", "gemma", SEQ_LENS[1:2], tuple(name for name in ENCODERS if name != "tiktoken"))


CASES = {"qwen3": qwen3, "gemma3": gemma3}


def open_job(case: Case, output: Path, seq_len: int) -> Any:
    """What `prepare` does before the first stage."""
    from data_prep.recipe import load_recipe
    from data_prep.stages.job import open_job

    output.mkdir(parents=True)
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(case.recipe(seq_len)), encoding="utf-8")
    return open_job(load_recipe(path), output)


def choose(job: Any, encoder: str) -> None:
    """What the command does with `--encoder`."""
    from data_prep import prepare

    if encoder == "tokenizers":
        job.renderer.encoder.look_words_up()
        return
    prepare._use_fast_encoder(job, encoder)
    assert encoder in job.renderer.encoder.name, job.renderer.encoder.name


def untouched(backend: Any) -> Any:
    """The same tokenizer as `tokenizers` itself loads it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(backend.to_str())


def rendered_texts(case: Case, folder: Path, num_parts: int | None = None) -> tuple[Any, list[str]]:
    """The tokenizer of `tokenizers`, and every row of the parts rendered."""
    from data_prep.sources.slices import read_slice
    from data_prep.stages.tokenize_stage import _convert, _reader

    job = open_job(case, folder / "texts", 4096)
    source = job.recipe.sources[0]
    reader = _reader(source, job.recipe)
    texts = []
    for part in job.parts[:num_parts]:
        for raw in read_slice(source, part.slice):
            conversation = _convert(raw, reader, job.recipe)
            if not isinstance(conversation, Exception):
                texts.append(job.renderer._render_text(conversation)[0])
    return job.renderer.encoder.backend, texts


def processor_time(case: Case, folder: Path, num_parts: int) -> dict[str, Any]:
    """CPU seconds per million tokens of tokenizing the first parts by each encoder, and of encode_batch around it."""
    from data_prep.stages.tokenize_stage import tokenize_part

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend, texts = rendered_texts(case, folder, num_parts)
    plain = untouched(backend)
    tokens = sum(len(encoding) for encoding in plain.encode_batch(texts, add_special_tokens=False))

    def seconds(work: Callable[[], Any]) -> float:
        started = time.process_time()
        work()
        return (time.process_time() - started) / tokens * 1e6

    def raw() -> float:
        return seconds(lambda: plain.encode_batch(texts, add_special_tokens=False))

    def tokenize(job: Any) -> None:
        for part in job.parts[:num_parts]:
            tokenize_part(part, (job.recipe, job.renderer, job.described))

    cpu, raw_cpu = {}, [raw()]
    for encoder in case.encoders:
        job = open_job(case, folder / encoder, 4096)
        choose(job, encoder)
        assert job.parts  # whose names are worked out now
        cpu[encoder] = seconds(partial(tokenize, job))
        raw_cpu.append(raw())
    around = dict(zip(case.encoders, map(mean, pairwise(raw_cpu)), strict=True))
    return {
        "rows": len(texts),
        "share_of_raw_cpu": {name: round(around[name] / cpu[name], 3) for name in cpu},
        "cpu": {name: round(value, 2) for name, value in cpu.items()} | {"raw": [round(v, 2) for v in raw_cpu]},
        "profile": {name: profile(case, folder / f"profile-{name}", name) for name in case.encoders},
    }


def profile(case: Case, output: Path, encoder: str) -> dict[str, float]:
    """CPU seconds of each step for the first part, step by step, in this process."""
    from data_prep.conversation import BadRow, Conversation
    from data_prep.sources.slices import read_slice
    from data_prep.stages.parts import PartWriter, hashes
    from data_prep.stages.tokenize_stage import _convert, _reader, _take

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    job = open_job(case, output, 4096)
    choose(job, encoder)
    part, recipe, renderer = job.parts[0], job.recipe, job.renderer
    source, seconds = recipe.sources[0], {}
    reader = _reader(source, recipe)

    def step(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        seconds[name] = round(time.process_time() - started, 3)
        return result

    rows = step("read", lambda: list(read_slice(source, part.slice)))
    seconds["rows"] = len(rows)
    converted = step("convert", lambda: [_convert(raw, reader, recipe) for raw in rows])
    pairs = [(raw, c) for raw, c in zip(rows, converted, strict=True) if isinstance(c, Conversation)]
    conversations = [c for _, c in pairs]
    step("look for control tokens", lambda: [renderer._control.spelled_in(c) for c in conversations])
    rendered = step("render", lambda: [renderer._render_text(c) for c in conversations])
    tokens = step("encode", lambda: renderer.encoder.encode_batch([text for text, *_ in rendered]))
    texts, spans, *_ = zip(*rendered, strict=True)
    examples = step("label", lambda: renderer._labeller.label_batch(texts, tokens, spans))
    kept = [(pair, e) for pair, e in zip(pairs, examples, strict=True) if not isinstance(e, BadRow)]
    pairs, examples = [pair for pair, _ in kept], [e for _, e in kept]
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
