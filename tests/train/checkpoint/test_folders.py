"""train.checkpoint: what counts as complete, under kills at every point, damage and rotation."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoint_folders import save, steps
from train.checkpoint import folders
from train.checkpoint.folders import MARKER, find_checkpoints, newest_complete, publish, read, rotate


def test_publish_then_read_gives_back_what_was_recorded(tmp_path):
    folder = save(tmp_path, 40)
    marker = json.loads((folder / MARKER).read_text())
    assert marker["files"] == {
        "global_step40/rank_0.pt": 500,
        "global_step40/rank_1.pt": 500,
        "model.safetensors": 1040,
    }
    found = read(folder)
    assert (found.path, found.step, found.world_size, found.extra) == (folder, 40, 2, {"manifest_sha256": "abc"})


def test_publish_flushes_every_file_and_folder_before_the_marker_is_named(tmp_path, monkeypatch):
    folder = save(tmp_path, 40, complete=False)
    flushed: list[Path] = []
    real_fsync = os.fsync

    def recording_fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        assert not (folder / MARKER).exists() or flushed[-1] == folder, "flushed after the marker was named"
        real_fsync(descriptor)

    def checking_replace(source: Path, target: Path) -> None:
        assert Path(target) == folder / MARKER and not Path(target).exists()
        assert len(json.loads(Path(source).read_text())["files"]) == 3  # whole before it gets its name
        assert Path(source) in flushed
        real_replace(source, target)
        renamed.append(target)

    renamed: list[Path] = []
    real_replace = os.replace
    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", checking_replace)
    publish(folder, step=40, world_size=2, extra={})
    assert len(renamed) == 1
    expected = {p for p in folder.rglob("*") if p.name != MARKER} | {folder, tmp_path}
    assert expected <= set(flushed)
    assert flushed[-1] == folder  # the marker's own name


def test_publish_refuses_an_empty_folder_and_clashing_keys(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="found none"):
        publish(tmp_path / "checkpoint-1", step=1, world_size=1, extra={})
    folder = save(tmp_path, 2, complete=False)
    with pytest.raises(ValueError, match=r"\['step'\]"):
        publish(folder, step=2, world_size=1, extra={"step": 3})


def test_a_published_run_directory_stays_complete_when_its_other_files_change(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "model.safetensors").write_bytes(b"final")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events").write_text("a")
    publish(tmp_path, step=20, world_size=2, extra={})
    (tmp_path / "runs" / "events").write_text("ab")
    (tmp_path / "run.json").write_text('{"resumed": true}')
    folders.delete(tmp_path / "checkpoint-10")
    assert read(tmp_path).step == 20
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.safetensors has 0 bytes, 5 expected"):
        read(tmp_path)


def test_a_withdrawn_directory_is_incomplete_until_published_again(tmp_path):
    folder = save(tmp_path, 40)
    folders.withdraw(folder)
    with pytest.raises(ValueError, match="cut off"):
        read(folder)
    folders.withdraw(folder)  # nothing to take away
    publish(folder, step=40, world_size=2, extra={})
    assert read(folder).step == 40


def no_marker(folder: Path) -> None:
    (folder / MARKER).unlink()


def truncate_marker(folder: Path) -> None:
    text = (folder / MARKER).read_text()
    (folder / MARKER).write_text(text[: len(text) // 2])


def empty_marker(folder: Path) -> None:
    (folder / MARKER).write_text("{}")


def binary_marker(folder: Path) -> None:
    (folder / MARKER).write_bytes(b"\xff\xfe\x00")


def truncate_file(folder: Path) -> None:
    os.truncate(folder / "global_step40" / "rank_1.pt", 499)


def lengthen_file(folder: Path) -> None:
    os.truncate(folder / "global_step40" / "rank_1.pt", 501)


def remove_file(folder: Path) -> None:
    (folder / "global_step40" / "rank_1.pt").unlink()


def marker_of_another_step(folder: Path) -> None:
    content = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps({**content, "step": 30}))


DAMAGES = [
    (no_marker, "no complete.json (the save was cut off, or the file was removed)"),
    (truncate_marker, "complete.json is damaged (expected JSON with step, world_size and files)"),
    (empty_marker, "complete.json is damaged (expected JSON with step, world_size and files)"),
    (binary_marker, "complete.json cannot be read"),
    (truncate_file, "global_step40/rank_1.pt has 499 bytes, 500 expected"),
    (lengthen_file, "global_step40/rank_1.pt has 501 bytes, 500 expected"),
    (remove_file, "global_step40/rank_1.pt is missing (500 bytes expected)"),
    (marker_of_another_step, "complete.json is of step 30 (the folder was renamed)"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage: Callable[[Path], None], why: str):
    for step in (9, 30, 40):  # 9: order is by number, not by name
        save(tmp_path, step)
    damage(tmp_path / "checkpoint-40")
    with pytest.raises(ValueError) as error:
        read(tmp_path / "checkpoint-40")
    assert str(error.value).startswith(f"checkpoint-40: {why}")
    messages: list[str] = []
    newest = newest_complete(tmp_path, messages.append)
    assert newest is not None and newest.step == 30
    assert len(messages) == 1 and messages[0] == f"{error.value}: passed over"
    assert [c.step for c in find_checkpoints(tmp_path)] == [9, 30]


def test_no_run_directory_and_no_checkpoint_give_none_in_silence(tmp_path):
    messages: list[str] = []
    assert newest_complete(tmp_path / "absent", messages.append) is None
    assert newest_complete(tmp_path, messages.append) is None
    assert messages == []
    assert rotate(tmp_path / "absent", keep=1, best=None) == []


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [9, 10, 20, 30]),
        (0, None, [9, 10, 20, 30]),
        (3, None, [10, 20, 30]),
        (3, 9, [9, 20, 30]),  # keep counts the best
        (2, 10, [10, 30]),
        (1, 10, [10, 30]),  # never the newest, never the best
        (1, 30, [30]),
        (7, None, [9, 10, 20, 30]),
    ],
)
def test_rotate_keeps_what_save_total_limit_means(tmp_path, keep, best, left):
    for step in (9, 10, 20, 30):
        save(tmp_path, step)
    # The best is named by the path it had when the run was elsewhere.
    best_path = Path(f"elsewhere/run/checkpoint-{best}") if best else None
    gone = rotate(tmp_path, keep=keep, best=best_path)
    assert steps(tmp_path) == left
    assert [p.name for p in gone] == [f"checkpoint-{s}" for s in (9, 10, 20, 30) if s not in left]
    assert not list(tmp_path.glob(".deleting-*"))


def test_rotate_agrees_with_transformers_where_all_are_complete(tmp_path):
    from transformers.trainer_utils import rotate_checkpoints

    for keep in (1, 2, 3):
        for best in (None, 9, 10, 30):
            ours, theirs = tmp_path / f"ours-{keep}-{best}", tmp_path / f"theirs-{keep}-{best}"
            for run_dir in (ours, theirs):
                for step in (9, 10, 20, 30):
                    save(run_dir, step)
            rotate(ours, keep=keep, best=ours / f"checkpoint-{best}" if best else None)
            rotate_checkpoints(str(theirs), keep, str(theirs / f"checkpoint-{best}") if best else None)
            assert steps(ours) == steps(theirs), (keep, best)


def test_rotate_removes_cut_off_saves_but_not_newer_ones_and_not_damaged_ones(tmp_path):
    save(tmp_path, 5, complete=False)
    save(tmp_path, 10, complete=False)
    truncate_marker(save(tmp_path, 15))
    save(tmp_path, 20)
    save(tmp_path, 30, complete=False)  # perhaps being written
    (tmp_path / "checkpoint-best").mkdir()  # not ours
    assert [p.name for p in rotate(tmp_path, keep=2, best=tmp_path / "checkpoint-5")] == ["checkpoint-10"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (15, 20, 30, 5, "best")]


def test_rotate_with_nothing_complete_deletes_nothing(tmp_path):
    save(tmp_path, 10, complete=False)
    save(tmp_path, 20, complete=False)
    assert rotate(tmp_path, keep=1, best=None) == []
    assert steps(tmp_path) == [10, 20]


KILL_POINTS = ("fsync", "replace", "rename", "unlink", "rmdir", "open")


def killed_at(call: int, action: Callable[[], object]) -> bool:
    """Run `action` in a forked process that kills itself just before its `call`-th change to the disk; False when it
    got through, having made fewer."""
    child = os.fork()
    if child == 0:
        counter = 0

        def before(real):
            def wrapped(*args, **kwargs):
                nonlocal counter
                counter += 1
                if counter == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return wrapped

        for name in KILL_POINTS:
            setattr(os, name, before(getattr(os, name)))
        try:
            action()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the action failed by itself: {status}"
    return status != 0


def test_publish_killed_at_any_point_never_looks_complete_too_early(tmp_path):
    for call in range(1, 100):
        folder = save(tmp_path / str(call), 40, complete=False)
        killed = killed_at(call, lambda folder=folder: publish(folder, step=40, world_size=2, extra={}))
        if not killed:
            break
        if (folder / MARKER).exists():
            assert read(folder).step == 40  # named: then it is whole
        publish(folder, step=40, world_size=2, extra={})  # and the leftovers do not disturb a second try
        assert set(json.loads((folder / MARKER).read_text())["files"]) == {
            "model.safetensors",
            "global_step40/rank_0.pt",
            "global_step40/rank_1.pt",
        }
    assert 8 <= call < 99  # the points were really passed


def test_deletion_killed_at_any_point_leaves_a_whole_checkpoint_or_none_under_its_name(tmp_path):
    for call in range(1, 100):
        run_dir = tmp_path / str(call)
        for step in (10, 20, 30):
            save(run_dir, step)
        killed = killed_at(call, lambda run_dir=run_dir: rotate(run_dir, keep=1, best=None))
        for folder in run_dir.glob("checkpoint-*"):
            assert read(folder)
        rotate(run_dir, keep=1, best=None)
        assert [p.name for p in run_dir.iterdir()] == ["checkpoint-30"]
        if not killed:
            break
    assert 8 <= call < 99
