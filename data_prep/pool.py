"""Do independent pieces of work in this process or in a pool, with a progress bar on a terminal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")


def run_all(work: Callable[[Item], None], items: list[Item], num_workers: int, title: str) -> None:
    """Call `work` on each item.

    Raises:
        ValueError: a worker process was killed.
    """
    from tqdm import tqdm

    with tqdm(total=len(items), desc=title, unit="part", disable=None) as bar:
        for _ in _results(work, items, num_workers):
            bar.update()


def _results(work: Callable[[Item], None], items: list[Item], num_workers: int) -> Iterator[None]:
    if num_workers == 1 or len(items) < 2:
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
