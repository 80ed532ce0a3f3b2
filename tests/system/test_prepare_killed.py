"""Preparation killed at random moments, all its processes at once, and run again: the same bytes in the end."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import pytest
import yaml

from data_prep import prepare
from data_prep.shards import MANIFEST
from data_prep.stages import pool
from tests.conftest import CORPUS
from tests.support.reading import all_bytes

SEED = 20
NUM_KILLS = 20
LATEST = 0.03  # seconds after the moment's file appeared: about two parts, or two shards
TIMEOUT = 600  # seconds; a run without kills takes about four
HEAVY = ("transformers.models.auto.tokenization_auto", "pandas")  # imported late by what is used


@pytest.fixture
def recipe_file(tmp_path, tiny_tokenizer) -> Path:
    """Two sources of several slices, one of them compressed; rows that are dropped for several reasons."""
    rows = [{"question": f"{i}? {CORPUS[i % 8]}", "answer": f"{i}. {CORPUS[i % 5]}"} for i in range(240)]
    rows[3]["answer"], rows[5], rows[7] = " ", rows[4], {"question": "long", "answer": CORPUS[3] * 40}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "plain.jsonl").write_text(lines + '{"question": "broken', encoding="utf-8")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines.replace("?", "!").encode()))
    sources = [
        {"name": name.partition(".")[0], "path": str(tmp_path / name), "form": "question_answer"}
        for name in ("plain.jsonl", "packed.jsonl.gz")
    ]
    options = {"chat_template": "chatml", "seq_len": 256, "rows_per_slice": 40, "rows_per_shard": 8}
    quality = {"near_duplicates": {"threshold": 0.9}, "pii": ["email"]}
    recipe = {"tokenizer": tiny_tokenizer.name_or_path, "sources": sources, **options, **quality}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_the_same_bytes_after_twenty_kills(recipe_file, tmp_path, monkeypatch):
    """Each run goes on where the one before was killed; the last is left alone.

    Time is counted in files written, since a run spends most of its seconds with loading libraries.
    """
    monkeypatch.delenv("PACKHAUL_CACHE")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    num_files = run(recipe_file, whole, None, 0.0)[0]
    wanted = all_bytes(whole)
    assert MANIFEST in wanted and not any(name.startswith(".work") for name in wanted)
    random = Random(SEED)
    log = []
    while sum(is_killed for _, _, is_killed in log) < NUM_KILLS:
        moment = round(num_files * (len(log) % NUM_KILLS + random.random()) / NUM_KILLS)
        found, is_killed = run(recipe_file, killed, moment, random.random() * LATEST)
        log.append((moment, found, is_killed))
        if not is_killed:  # it was faster: begin anew
            assert all_bytes(killed) == wanted, f"seed {SEED}; (moment, files found, killed): {log}"
            shutil.rmtree(killed)
    run(recipe_file, killed, None, 0.0)
    assert all_bytes(killed) == wanted, f"seed {SEED}; (moment, files found, killed): {log}"


def run(recipe: Path, output: Path, moment: int | None, delay: float) -> tuple[int, bool]:
    """Prepare with two workers; kill all processes `delay` seconds after there are `moment` files.

    Returns:
        The number of files when it was killed, or the largest seen; whether it was killed before its end.
    """
    context = get_context("forkserver")  # its processes start with the libraries loaded
    context.set_forkserver_preload([__name__, "data_prep.stages.finish_stage", "data_prep.report.build", *HEAVY])
    ready, waiting = context.Pipe(duplex=False)
    process = context.Process(target=prepare_in_own_group, args=(waiting, recipe, output))
    process.start()
    waiting.close()
    assert ready.recv() == "ready"
    deadline, most = time.monotonic() + TIMEOUT, 0
    while process.is_alive() and (moment is None or most < moment):
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.001)
        most = max(most, sum(len(files) for _, _, files in os.walk(output)))
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return most, process.exitcode != 0


def prepare_in_own_group(pipe: Connection, recipe: Path, output: Path) -> None:
    """What the command does, in a process group that can be killed as a whole."""
    os.setpgid(0, 0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Its workers are forked from it: they start with the libraries loaded, and belong to its group.
    pool.start_server = prepare.start_server = lambda: None
    pool.get_context = lambda _: get_context("fork")
    pipe.send("ready")
    sys.exit(prepare.main(["--recipe", str(recipe), "--output", str(output), "--num-workers", "2"]))
