"""A pool of worker processes, or this process alone, with a progress bar on a terminal.

Workers are forked from a server process that has imported what they need and done nothing else: importing takes
seconds, and a fork of this process, which has run the tokenizer's threads, could hang on their locks.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
_PRELOAD = ["data_prep.stages.worker"]
_SHARED: list[Any] = []  # what this process was given
_FAILED: list[Exception] = []  # why it could not be loaded
_PATIENCE = 5.0  # seconds


def start_server() -> None:
    """Start importing what workers need. Called as early as possible, as it takes as long as this process's imports.

    The server and its workers do not hear a terminal's Ctrl-C, which they would answer with tracebacks: this process
    ends them.
    """
    get_context("forkserver").set_forkserver_preload(_PRELOAD)
    resource_tracker.ensure_running()  # which would let SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """Processes that are each given `shared` once, and from now on start and load what is in it, while this process
    goes on; this process itself where one is enough.

    Args:
        num_workers: no more than there will be items.
    """

    def __init__(self, num_workers: int, shared: Any = None):
        self._shared, self._pool = shared, None
        if num_workers > 1:
            start_server()
            # Pickled once, and not for each worker: a tokenizer's vocabulary takes a while.
            given = (dict(os.environ), pickle.dumps(shared))
            self._pool = ProcessPoolExecutor(num_workers, get_context("forkserver"), _start_worker, given)
            with suppress(BrokenProcessPool):  # which `run` explains
                for _ in range(num_workers):
                    self._submit(_nothing)  # a process starts when there is something for it to do

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool:
            stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
            # A broken pool has ended the workers, but not one that was about to start, and waits for that.
            if stopped or self._is_broken():
                for process in list((self._pool._processes or {}).values()):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, work: Callable[[Item, Any], None], items: list[Item], title: str) -> None:
        """Call `work` on each item and what is shared.

        Raises:
            ValueError: a worker process was killed.
        """
        from tqdm import tqdm

        with tqdm(total=len(items), desc=title, unit="part", disable=None) as bar:
            for _ in self._results(work, items):
                bar.update()

    def _results(self, work: Callable[[Item, Any], None], items: list[Item]) -> Iterator[None]:
        if self._pool is None:
            for item in items:
                _work(work, item, self._shared)
                yield
            return
        try:
            done: SimpleQueue[Future[None]] = SimpleQueue()
            for item in items:
                self._submit(_call, work, item).add_done_callback(done.put)
            for _ in items:
                yield self._next(done).result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process was killed, most likely for lack of memory: run the same command again with fewer "
                "--num-workers; finished parts are kept"
            ) from None

    def _submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        assert self._pool is not None
        try:
            return self._pool.submit(work, *arguments)
        except OSError as error:  # a process died while it was started, or another while this one was
            if self._is_broken() or isinstance(error, BrokenPipeError):
                raise BrokenProcessPool from None
            raise

    def _next(self, done: SimpleQueue[Future[None]]) -> Future[None]:
        """What is done next. What was asked for while the pool broke would never be."""
        while True:
            with suppress(Empty):
                return done.get(timeout=_PATIENCE)
            if self._is_broken():
                raise BrokenProcessPool

    def _is_broken(self) -> bool:
        return bool(self._pool and self._pool._broken)


def _nothing() -> None: ...


def _call(work: Callable[[Item, Any], None], item: Item) -> None:
    for error in _FAILED:
        raise error
    _work(work, item, _SHARED[0])


def _work(work: Callable[[Item, Any], None], item: Item, shared: Any) -> None:
    """Without the collector, which would look at every object each few thousand rows and find no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        work(item, shared)
    finally:
        if was_enabled:
            gc.enable()


def _start_worker(environment: dict[str, str], shared: bytes) -> None:
    """One thread per worker. A worker ends with the process that asked for it, however that ends, and then the server,
    which stays as long as one of them could ask it for another."""
    os.environ.update(environment)  # the server's may be older
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        _SHARED[:] = [pickle.loads(shared)]
    except Exception as error:  # raised by the work: here it would be taken for a worker's death
        _FAILED[:] = [error]
    gc.collect()
    gc.freeze()  # so that a collection after an item looks at that item's objects alone
    asking = parent_process()
    assert asking is not None

    def watch() -> None:
        asking.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
