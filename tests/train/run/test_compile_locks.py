"""A lock is removed when nothing has been compiled next to it for long, and only then. Compiling is reported."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from train.run import log
from train.run.compile_locks import STALE_SECONDS, announce_builds, remove_stale


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


class Builder:
    """As DeepSpeed's OpBuilder."""

    name = "cpu_adam"

    def jit_load(self, verbose=True) -> tuple[str, bool]:
        return self.name, verbose


def test_compiling_is_reported_before_it_begins_and_loading_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    module = SimpleNamespace(OpBuilder=type("OpBuilder", (Builder,), {}))
    monkeypatch.setitem(sys.modules, "deepspeed.ops.op_builder.builder", module)
    log.set_up()
    announce_builds()
    announce_builds()  # twice is once
    assert module.OpBuilder().jit_load(verbose=False) == ("cpu_adam", False)
    assert capsys.readouterr().out.count(f"compiling DeepSpeed's operator cpu_adam into {tmp_path}: once for") == 1
    (tmp_path / "py311_cpu" / "cpu_adam").mkdir(parents=True)
    (tmp_path / "py311_cpu" / "cpu_adam" / "cpu_adam.so").touch()
    assert module.OpBuilder().jit_load() == ("cpu_adam", True)
    assert not capsys.readouterr().out


def test_a_lock_of_a_killed_process_is_waited_for_until_it_is_stale(tmp_path, monkeypatch, capsys):
    """Its time comes while this process waits: it was not stale when the run began."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    module = SimpleNamespace(OpBuilder=type("OpBuilder", (Builder,), {}))
    monkeypatch.setitem(sys.modules, "deepspeed.ops.op_builder.builder", module)
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            old = time.time() - STALE_SECONDS - 60
            os.utime(lock, (old, old))

    monkeypatch.setattr("train.run.compile_locks.time.sleep", wait)
    log.set_up()
    announce_builds()
    assert module.OpBuilder().jit_load() == ("cpu_adam", True)
    said = capsys.readouterr()
    assert len(waits) == 4 and not lock.exists()
    assert said.out.count("another process compiles cpu_adam: waiting, at most 10 minutes") == 1
    assert f"removed {lock}: a process that was killed" in said.err


def test_deepspeed_still_compiles_there():
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).with_name("ops").joinpath("op_builder", "builder.py").read_text()
    assert "class OpBuilder(ABC)" in text and "return self.jit_load(verbose)" in text
