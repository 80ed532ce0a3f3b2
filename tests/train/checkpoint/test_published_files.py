"""The files of a published checkpoint: durable before the marker is, divided among the processes that verify them."""

from __future__ import annotations

import json

import pytest

from tests.support.checkpoint_folders import save
from train.checkpoint import folders
from train.run.atomic_files import flush


def test_what_the_writers_flushed_is_named_durably_before_the_marker_is(tmp_path, monkeypatch):
    """The writers flush their files; the folders that name these are left to the one that publishes."""
    folder = save(tmp_path, 40, complete=False)
    files = {f.relative_to(folder).as_posix(): r for f, r in flush(p for p in folder.rglob("*") if p.is_file()).items()}
    order, write = [], folders.write_json_atomically
    monkeypatch.setattr(folders, "fsync_folder", order.append)
    monkeypatch.setattr(folders, "write_json_atomically", lambda *args: (order.append("marker"), write(*args)))
    folders.publish(folder, step=40, world_size=2, extra={}, files=files)
    assert set(order[:-1]) == {folder / "global_step40", folder, tmp_path} and order[-1] == "marker"
    assert folders.read(folder).files == files


def test_processes_divide_the_files_that_they_verify(tmp_path, monkeypatch):
    """Each file is read by one of them, and none reads much more than another."""
    sizes = {f"part{i}": 100 * (1 + i % 5) for i in range(20)}
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(b"x" * size)
    folders.publish(folder, step=1, world_size=4, extra={})
    read, digest = [], folders.digest
    monkeypatch.setattr(folders, "digest", lambda file: read[-1].append(file.name) or digest(file))
    for share in range(4):
        read.append([])
        assert list(folders.verify(folders.read(folder), share=share, shares=4)) == []
    assert sorted(name for names in read for name in names) == sorted(sizes)
    loads = [sum(sizes[name] for name in names) for names in read]
    assert max(loads) - min(loads) <= max(sizes.values())


@pytest.mark.parametrize("marked", [{"digest": "md5"}, {"digest": None}, {"digests": {}}])
def test_digests_of_another_kind_are_not_compared(marked, tmp_path):
    folder = save(tmp_path, 40)
    marker = json.loads((folder / folders.MARKER).read_text())
    (folder / folders.MARKER).write_text(json.dumps({**marker, **marked}))
    found = folders.read(folder)
    assert {record.digest for record in found.files.values()} == {None} and not list(folders.verify(found))


def test_a_checkpoint_takes_the_place_of_one_of_its_step(tmp_path):
    """Such as one whose marker was lost: none of its files may live on under the name."""
    old = save(tmp_path, 40, complete=False)
    (old / "stale.bin").write_bytes(b"old")
    new = save(tmp_path / "aside", 40)
    folders.give_name(new, old)
    assert "stale.bin" not in [p.name for p in old.iterdir()] and folders.read(old).step == 40
    assert not new.exists() and not list(tmp_path.glob(".deleting-*"))
