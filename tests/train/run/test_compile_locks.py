"""A lock is removed when nothing has been compiled next to it for long, and only then."""

from __future__ import annotations

import os
import time

from train.run import log
from train.run.compile_locks import STALE_SECONDS, remove_stale


def test_only_old_locks_are_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old = time.time() - STALE_SECONDS - 60
    for name, times in {"left": [old, old], "py311_cpu/left": [old, old], "compiles": [old, time.time()]}.items():
        (tmp_path / name).mkdir(parents=True)
        for file, when in zip(("lock", "build.ninja"), times, strict=True):
            (tmp_path / name / file).touch()
            os.utime(tmp_path / name / file, (when, when))
    log.set_up()
    remove_stale()
    assert [lock.parent.name for lock in tmp_path.rglob("lock")] == ["compiles"]
    assert capsys.readouterr().err.count("a process that was killed while it compiled had left it") == 2


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "nowhere"))
    remove_stale()
