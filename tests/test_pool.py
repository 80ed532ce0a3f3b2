"""Workers that die are told from work that fails, whenever they do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from data_prep.pool import Workers


class DiesWhereItIsLoaded:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return _die, ()


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
