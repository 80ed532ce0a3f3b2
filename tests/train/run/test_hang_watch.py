"""The thread that watches a process: who names a hang, what counts as progress, how it ends."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

from tests.support.rank_states import state
from train.run import hang_watch, log, rank_states, watchdog
from train.run.hang_watch import Watchdog
from train.run.rank_states import Places

LIMIT = 1.2  # seconds; a beat is a sixth of it
PATIENCE = 60.0


@pytest.fixture
def ended(monkeypatch):
    """Set where the process would have been ended."""
    event = threading.Event()
    event.timers = []  # seconds of each timer that ends a process in which Python does not run
    monkeypatch.setattr(hang_watch, "end_process", event.set)
    monkeypatch.setattr(Watchdog, "_end_by_force_after", lambda self, seconds: event.timers.append(seconds))
    return event


@pytest.fixture
def start(tmp_path, ended):
    """Starts watches of ranks of one world."""
    log.set_up()
    watches = []

    def start(rank: int, world_size: int, limit: float = LIMIT, **limits: float) -> Watchdog:
        places = Places(tmp_path / "ranks", tmp_path / "hung.json")
        watch = Watchdog(dict.fromkeys(watchdog.LIMITS, limit) | limits, 600.0, rank, world_size, places)
        watch.enter("step", 6)
        watch.enter("step", 7, "forward")
        watch.start()
        watches.append(watch)
        return watch

    yield start
    for watch in watches:
        watch.stop()


@pytest.fixture
def others(tmp_path):
    """Ranks of other processes, whose files are written again and again until they are told to stop."""
    running, states = threading.Event(), {}

    def write():
        (tmp_path / "ranks").mkdir(exist_ok=True)
        while not running.wait(LIMIT / 12):
            for rank, one in list(states.items()):
                states[rank] = replace(one, beat=one.beat + 1)
                rank_states.write(tmp_path / "ranks", states[rank])

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield states
    running.set()
    thread.join()


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_alone_says_where_it_is_and_ends(start, ended, capfd):
    start(0, 1)
    assert ended.wait(PATIENCE)
    said = capfd.readouterr().err
    assert said.count("sft: error: rank 0 on ") == 2  # the hang, and whose threads follow
    assert " hangs: in step 7 (forward) since " in said and "it is at threading.wait" in said
    assert "in test_a_process_alone_says_where_it_is_and_ends" in said  # the stack of this thread
    usual, after_the_hang = ended.timers
    assert usual > 600 and after_the_hang < 4 * LIMIT


def test_a_rank_without_a_beat_is_named_by_the_lowest_that_answers(start, ended, others, tmp_path, capfd):
    (tmp_path / "ranks").mkdir(exist_ok=True)
    for silent in (0, 3):
        rank_states.write(tmp_path / "ranks", state(silent, host="lost", phase="save", part="", step=7))
    others[2] = state(2, position=3)
    start(1, 4, limit=3 * LIMIT)
    assert ended.wait(PATIENCE)
    assert "sft: error: ranks 0, 3 on lost hang: in the save after step 7 since " in capfd.readouterr().err
    hung = json.loads((tmp_path / "hung.json").read_text())
    assert (hung["rank"], hung["ranks"], hung["host"], hung["phase"]) == (0, [0, 3], "lost", "save")
    assert hung["since"] == state(0).since and hung["stacks"] == []


def test_no_more_files_are_read_than_it_takes(others, tmp_path, monkeypatch):
    """A world of thousands would read millions of files."""
    others |= {rank: state(rank) for rank in range(5)}
    until(lambda: rank_states.read(tmp_path / "ranks", 4))
    observer, reads, read = rank_states.Observer(tmp_path / "ranks", PATIENCE), [], rank_states.read
    monkeypatch.setattr(rank_states, "read", lambda folder, rank: reads.append(rank) or read(folder, rank))
    until(lambda: observer.is_seen_to_beat(range(5)))
    assert set(reads) == set(range(5))  # nobody was seen to beat yet
    reads.clear()
    assert observer.is_seen_to_beat(range(5)) and len(reads) == 1


def test_before_there_is_a_folder_each_rank_tells_of_itself(ended, tmp_path, capfd):
    log.set_up()
    watch = Watchdog(dict.fromkeys(watchdog.LIMITS, LIMIT), 600.0, 1, 2, Places.of(None, tmp_path / "run", 2))
    watch.start()
    assert ended.wait(PATIENCE)
    watch.stop()
    assert "sft: error: rank 1 on " in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_a_higher_rank_leaves_it_to_a_lower_one_and_ends_with_it(start, ended, others, tmp_path, capfd):
    others[0] = state(0)
    start(1, 2)._observer._silent_after = PATIENCE
    time.sleep(4 * LIMIT)
    assert not ended.is_set() and "hang" not in capfd.readouterr().err
    (tmp_path / "hung.json").write_text(json.dumps({"stacks": [1]}))
    assert ended.wait(PATIENCE)
    said = capfd.readouterr().err
    assert said.count("sft: error: ") == 1 and ": its threads:\n" in said


@pytest.mark.parametrize("at_work", ["itself", "another rank"])
def test_who_is_at_work_does_not_hang(at_work, start, ended, others, capfd):
    others[1] = state(1, late=at_work == "itself")
    watch = start(0, 2, step=LIMIT if at_work == "another rank" else 5 * LIMIT)
    watch._observer._silent_after = PATIENCE
    for _ in range(36):
        time.sleep(LIMIT / 6)
        if at_work == "itself":
            watch.progress()
    assert not ended.is_set() and "hang" not in capfd.readouterr().err


def test_the_first_step_has_the_time_of_the_start(start, ended):
    watch = start(0, 1, start=PATIENCE)
    watch._begun.clear()
    watch.enter("step", 1)
    time.sleep(4 * LIMIT)
    assert not ended.is_set()
    watch.enter("step", 2)
    assert ended.wait(PATIENCE)


@pytest.mark.parametrize("phase", ["save", "step"])
def test_bytes_count_as_progress_of_a_save_alone(phase, start, ended, monkeypatch):
    moved = iter(range(2**22, 2**40, 2**22))
    monkeypatch.setattr(hang_watch, "_bytes_moved", lambda: next(moved))
    watch = start(0, 1)
    watch.enter(phase, 7)
    watch.enter(phase, 7)
    assert ended.wait(PATIENCE if phase == "step" else 4 * LIMIT) == (phase == "step")


def test_bytes_are_counted(tmp_path):
    before = hang_watch._bytes_moved()
    (tmp_path / "file").write_bytes(bytes(2**22))
    assert 2**22 <= hang_watch._bytes_moved() - before < 2**24


def test_who_goes_on_within_the_grace_period_is_not_ended(start, ended, tmp_path, capfd):
    watch = start(0, 1)
    watch._grace = PATIENCE
    until(lambda: (tmp_path / "hung.json").exists())
    watch.enter("step", 8)
    until(lambda: not (tmp_path / "hung.json").exists())
    assert not ended.is_set() and "sft: WARNING: the ranks go on after all" in capfd.readouterr().err


def test_what_goes_wrong_at_the_end_does_not_keep_it_off(start, ended, monkeypatch, capfd):
    def fails(folder, world_size):
        raise KeyError("entries")

    monkeypatch.setattr(hang_watch.flight_records, "describe", fails)
    start(0, 1)
    assert ended.wait(PATIENCE)


def test_a_hang_is_named_before_ddp_timeout():
    for timeout, limit in ((16, 8), (600, 510), (1800, 600)):
        watch = Watchdog(watchdog.LIMITS, timeout, 0, 1, None)
        assert watch._limits["step"] == limit


def test_the_watch_leaves_nothing_behind(start, tmp_path):
    watch = start(0, 2)
    until((tmp_path / "ranks" / "rank0.json").exists)
    watch.stop()
    assert not (tmp_path / "ranks").exists()


def test_the_run_directory_is_made_by_others(tmp_path):
    places = Places.of(None, tmp_path / "run", 2)
    assert not places.make() and not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert places.make()
    assert Places.of(None, tmp_path, 1) is None  # a process alone has nobody to tell
    assert Places.of("job", tmp_path, 1).ranks.as_posix() == "job/ranks"
