"""Workers that die are told from work that fails, whenever they do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from data_prep.stages.pool import Workers, _call


class DiesWhereItIsLoaded:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return _die, ()


class FirstDies:
    """Kills the first process that unpickles it, once the second has started."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __setstate__(self, state: dict):
        folder = state["folder"]
        with suppress(FileExistsError):
            (folder / "first").touch(exist_ok=False)
            wait_until((folder / "second").exists)
            _die()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class RaisesWhereItIsLoaded:
    def __reduce__(self):
        return _refuse, (3, 8)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(item: int, shared: int) -> None:
    raise ValueError(f"row {item} of {shared}")


def _write(item: str, shared: str) -> None:
    Path(item).write_text(f"{shared} {os.getpid()}")


@pytest.mark.parametrize(("shared", "work"), [(DiesWhereItIsLoaded(), _write), ("fine", _die)])
def test_a_worker_that_is_killed_is_said_to_be(shared, work):
    said = "a worker process was killed, most likely for lack of memory"
    with pytest.raises(ValueError, match=said), Workers(2, shared) as workers:
        workers.run(work, ["a", "b", "c"], "work")


def test_one_that_dies_while_another_starts_is_not_waited_for(tmp_path, monkeypatch):
    """The pool itself ends those that it has counted by then, and waits for all."""

    class CountedLate(dict):
        def __setitem__(self, pid, process):
            if self:
                (tmp_path / "second").touch()
                wait_until(lambda: pools[0]._broken)
                time.sleep(0.3)
            super().__setitem__(pid, process)
            wait_until((tmp_path / "first").exists)

    def spawn(pool):
        if not pools:
            pools.append(pool)
            pool._processes = CountedLate()
        real(pool)

    pools: list[Any] = []
    real = ProcessPoolExecutor._spawn_process
    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", spawn)
    said = "a worker process was killed"
    with pytest.raises(ValueError, match=said), Workers(2, FirstDies(tmp_path)) as workers:
        workers.run(_write, ["a"] * 8, "work")
    assert (tmp_path / "second").exists()


def test_what_cannot_be_loaded_is_no_killed_worker():
    with pytest.raises(ValueError, match="row 3 of 8"), Workers(2, RaisesWhereItIsLoaded()) as workers:
        workers.run(_write, ["a"], "work")


def test_what_the_work_refuses_is_raised_as_it_is():
    with pytest.raises(ValueError, match="row 1 of 7"), Workers(2, 7) as workers:
        workers.run(_refuse, [1, 1], "work")


@pytest.mark.parametrize("number", [1, 2])
def test_all_is_done_with_what_is_shared(tmp_path, number):
    files = [str(tmp_path / str(i)) for i in range(20)]
    with Workers(number, "shared") as workers:
        workers.run(_write, files, "work")
    found = [Path(file).read_text().split() for file in files]
    assert {word for word, _ in found} == {"shared"}
    assert (str(os.getpid()) in {pid for _, pid in found}) == (number == 1)


def test_ctrl_c_ends_the_workers_at_once_and_is_not_heard_by_them(tmp_path):
    started = [tmp_path / "0", tmp_path / "1"]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(2) as workers:
        for path in started:
            workers._submit(_call, _hold, path)
        wait_until(lambda: all(path.exists() for path in started))
        raise KeyboardInterrupt
    assert time.monotonic() - began < 200
    assert {path.read_text() for path in started} == {"True"}


def _hold(path: Path, shared: Any) -> None:
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    path.with_suffix(".half").write_text(str(blocked))
    path.with_suffix(".half").rename(path)
    time.sleep(400)
