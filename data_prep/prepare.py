"""Entry: raw instruction data -> packed, pre-tokenized shards, in three restartable stages.

    python -m data_prep.prepare --recipe configs/data/X.yaml --output DIR [--num-workers N]

tokenize (parallel, by slices of rows) -> plan (one process, reads lengths and hashes) -> pack (parallel, by shard).
The bytes are the same for any number of workers, and after any number of kills and reruns: a rerun skips what is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_prep.recipe import Recipe, load_recipe

WORK_DIR = ".work"


def main(argv: list[str] | None = None) -> int:
    """Prepare one shard directory; 0 when it is complete, 2 when the input has to be changed."""
    arguments = _parser().parse_args(argv)
    try:
        prepare(load_recipe(arguments.recipe), Path(arguments.output), arguments.num_workers, arguments.keep_work)
    except (ValueError, OSError) as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep.prepare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", required=True, help="YAML file, see configs/data/")
    parser.add_argument("--output", required=True, help="shard directory to make, or to go on with")
    parser.add_argument("--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    parser.add_argument("--keep-work", action="store_true", help="keep the intermediate parts after completion")
    return parser


def prepare(recipe: Recipe, output: Path, num_workers: int = 1, keep_work: bool = False) -> dict[str, Any]:
    """Run the stages that are not done yet; the manifest.

    Raises:
        ValueError: input that cannot be used, or an output directory made from something else.
    """
    from data_prep.manifest import build_manifest, write_dropped
    from data_prep.pack_stage import shard_tasks, write_task
    from data_prep.plan_stage import plan
    from data_prep.shards import MANIFEST, to_json, write_atomically
    from data_prep.tokenize_stage import make_renderer

    if num_workers < 1:
        raise ValueError(f"--num-workers must be at least 1, found {num_workers}")
    started = time.monotonic()
    recipe = _resolve_forms(recipe)
    renderer = make_renderer(recipe)
    identity = _identity(recipe, renderer)
    done = _already_complete(output, identity)
    if done:
        return done
    work = output / WORK_DIR
    parts = _find_parts(recipe, work, identity)
    _say_resumed(sum(p.is_complete() for p in parts), len(parts))

    todo = [p for p in parts if not p.is_complete()]
    _run(partial(_tokenize, recipe=recipe), todo, num_workers, "tokenize", setup=renderer)
    plan_dir = work / f"plan-{_digest(identity)}"
    summary = json.loads(_read(plan_dir / "plan.json") or "null") or plan(parts, recipe, plan_dir)
    tasks = shard_tasks(summary, recipe)
    missing = [t for t in tasks if not (t.marker(plan_dir).exists() and (output / t.file).exists())]
    _run(partial(write_task, parts=parts, work=plan_dir, output=output), missing, num_workers, "pack")

    write_dropped(output, recipe, parts, plan_dir)
    manifest = build_manifest(recipe, renderer, identity, summary, tasks, plan_dir, output)
    write_atomically(output / MANIFEST, to_json(manifest))
    if not keep_work:
        shutil.rmtree(work)
    _print_summary(manifest, output, time.monotonic() - started)
    return manifest


def _resolve_forms(recipe: Recipe) -> Recipe:
    """The recipe with each source's form known and checked against its first rows.

    Raises:
        ValueError: a file that is not there, or a form or column that no row has.
    """
    from data_prep.readers import read_slice, slice_source
    from data_prep.sources import check_columns, resolve_form

    sources = []
    for source in recipe.sources:
        rows = chain.from_iterable(read_slice(source, piece) for piece in slice_source(source, recipe.rows_per_slice))
        first_rows = list(islice(rows, 100))
        resolved = resolve_form(source, first_rows)
        if source.form == "auto":
            print(f"source {source.name}: form {resolved.form}, columns {resolved.columns or 'as usual'}")
        check_columns(resolved, first_rows)
        sources.append(resolved)
    return recipe.model_copy(update={"sources": sources})


def _identity(recipe: Recipe, renderer: Any) -> dict[str, Any]:
    """Everything that decides the bytes: the recipe, the input files as they are, the tokenizer, the template."""
    from data_prep.readers import source_identity
    from data_prep.rendering import fingerprint

    tokenizer = {k: v for k, v in fingerprint(renderer.tokenizer).items() if k != "name"}
    return {
        "recipe": recipe.model_dump(mode="json"),
        "inputs": {s.name: source_identity(s) for s in recipe.sources},
        "tokenizer": tokenizer,
        "chat_template_sha256": hashlib.sha256(renderer.template.text.encode()).hexdigest(),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _already_complete(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    from data_prep.shards import MANIFEST, check_files, read_manifest

    if not (output / MANIFEST).exists():
        return None
    manifest = read_manifest(output)
    if manifest["identity"] != _digest(identity):
        raise ValueError(
            f"{output} is complete and was made from another recipe, other input files or another tokenizer "
            f"(see its {MANIFEST}): choose another --output, or delete it first"
        )
    problems = check_files(output, manifest)
    if problems:
        raise ValueError(f"{output} is complete but damaged: {'; '.join(problems)}. Delete it and prepare it again")
    print(f"{output} is complete: nothing to do")
    return manifest


def _find_parts(recipe: Recipe, work: Path, identity: dict[str, Any]) -> list[Any]:
    """Slice every source. A part's folder is named by what decides its bytes, so that a changed recipe reuses no part
    wrongly, and reuses all parts when only the mixture has changed."""
    from data_prep.parts import Part
    from data_prep.readers import slice_source

    shared: tuple[str, ...] = (
        "tokenizer",
        "chat_template",
        "seq_len",
        "train_on",
        "reasoning",
        "control_tokens",
        "bad_rows",
        "too_long",
    )
    shared += ("rows_per_slice",)
    parts = []
    for source in recipe.sources:
        own = (
            "name",
            "path",
            "dataset",
            "subset",
            "split",
            "revision",
            "form",
            "columns",
            "roles",
            "placeholders",
            "system",
            "first",
        )
        key = {
            **{k: identity["recipe"][k] for k in shared},
            **{k: source.model_dump(mode="json")[k] for k in own},
            **{k: identity[k] for k in ("tokenizer", "chat_template_sha256")},
            "input": identity["inputs"][source.name],
        }
        slices = slice_source(source, recipe.rows_per_slice)
        parts += [Part(work / f"tokenize-{_digest(key)}", piece) for piece in slices]
    if not parts:
        raise ValueError("the sources hold no rows")
    return parts


def _tokenize(part: Any, recipe: Recipe) -> None:
    from data_prep.tokenize_stage import tokenize_part

    tokenize_part(part, recipe, _renderer(recipe))


_RENDERER: list[Any] = []  # this process's renderer: loading the tokenizer takes seconds


def _renderer(recipe: Recipe) -> Any:
    from data_prep.tokenize_stage import make_renderer

    if not _RENDERER:
        _RENDERER.append(make_renderer(recipe))
    return _RENDERER[0]


def _run(work: Callable[[Any], None], items: list[Any], num_workers: int, title: str, setup: Any | None = None) -> None:
    """Do the items, in this process or in a pool, with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(items), desc=title, unit="part", disable=None) as bar:
        for _ in _results(work, items, num_workers, setup):
            bar.update()


def _results(work: Callable[[Any], None], items: list[Any], num_workers: int, setup: Any | None) -> Iterable[None]:
    if num_workers == 1 or len(items) < 2:
        _RENDERER[:] = [setup] if setup else []
        for item in items:
            work(item)
            yield
        return
    from multiprocessing import get_context

    # spawn: the parent has run tokenizer threads, and a forked copy of their locks would hang
    workers = min(num_workers, len(items))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process was killed, most likely for lack of memory: run the same command again with fewer "
                "--num-workers; finished parts are kept"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread per worker, and no worker that outlives a killed parent."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _say_resumed(done: int, total: int) -> None:
    if done:
        print(f"{done} of {total} parts are tokenized already: going on with the rest")


def _print_summary(manifest: dict[str, Any], output: Path, seconds: float) -> None:
    from data_prep.manifest import summary_lines

    print("\n".join(summary_lines(manifest)))
    tokens = sum(s["tokens"] for s in manifest["sources"])
    print(f"{tokens:,} tokens in {seconds:.1f} s -> {output}")


if __name__ == "__main__":
    sys.exit(main())
