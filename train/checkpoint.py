"""Which saved states are complete: the marker written last, the newest complete checkpoint, rotation.

The Trainer and DeepSpeed write straight into `checkpoint-N` from several processes, so a kill leaves a folder that
looks like a checkpoint. Here a folder counts only when `complete.json`, written last and atomically, lists every file
with its size and all of them agree. Standard library only: importing this costs nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

MARKER = "complete.json"
# Names at the top of a run directory that live on after the final model is published, so they are no part of it.
NOT_LISTED = (MARKER, ".*", "checkpoint-*", "run.json", "runs", "wandb", "logs", "*.log")

_NAME = re.compile(r"checkpoint-(\d+)")
_DELETING = ".deleting-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete saved state."""

    path: Path
    step: int  # optimizer steps done
    world_size: int  # processes that wrote it; DeepSpeed state only loads into as many
    extra: dict[str, Any]  # whatever else the writer recorded (manifest_sha256, ...)


def publish(directory: Path, *, step: int, world_size: int, extra: dict[str, Any]) -> None:
    """Declare `directory` complete: flush all its files to disk, then write the marker that lists them.

    Called by one process after a barrier behind which every process has closed its files. Works for `checkpoint-N` and
    for a run directory holding the final model (see NOT_LISTED for what is left out).

    Raises:
        ValueError: there is nothing to publish, or `extra` uses one of the marker's own keys.
    """
    directory = Path(directory)
    marker = {"step": step, "world_size": world_size, "files": {}}
    if clash := marker.keys() & extra.keys():
        raise ValueError(f"extra may not hold {sorted(clash)}: these are the marker's own keys")
    files = list(_listed_files(directory))
    if not files:
        raise ValueError(f"{directory}: expected the files of a saved state, found none: save before publish()")
    sizes = flush(files)
    marker["files"] = {f.relative_to(directory).as_posix(): size for f, size in sizes.items()}
    write_json_atomically(directory / MARKER, {**marker, **extra})


def withdraw(directory: Path) -> None:
    """Take the marker away before `directory` is written again: half-replaced files may have the sizes it lists."""
    (Path(directory) / MARKER).unlink(missing_ok=True)
    _fsync(Path(directory))


def read(directory: Path) -> Checkpoint:
    """Check `directory` against its marker.

    Raises:
        ValueError: no marker, an unreadable one, or a listed file that is missing or has another size.
    """
    directory = Path(directory)
    marker = _read_marker(directory)
    for name, size in marker["files"].items():
        _check_size(directory, name, size)
    extra = {k: v for k, v in marker.items() if k not in ("step", "world_size", "files")}
    checkpoint = Checkpoint(directory, marker["step"], marker["world_size"], extra)
    named = _NAME.fullmatch(directory.name)
    if named and int(named[1]) != checkpoint.step:
        raise ValueError(f"{directory.name}: {MARKER} is of step {checkpoint.step} (the folder was renamed)")
    return checkpoint


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint, not a run directory."""
    return _NAME.fullmatch(name) is not None


def find_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    return [c for _, folder in _folders(run_dir) if (c := _read_or_none(folder))]


def newest_complete(run_dir: Path, log: Callable[[str], None]) -> Checkpoint | None:
    """The complete checkpoint with the highest step, or None; `log` is told of each newer folder passed over."""
    for _, folder in reversed(_folders(run_dir)):
        try:
            return read(folder)
        except ValueError as error:
            log(f"{error}: passed over")
    return None


def rotate(run_dir: Path, *, keep: int | None, best: Path | None) -> list[Path]:
    """Delete old checkpoints, with the meaning of `save_total_limit`: `keep` in all, the best one among them.

    The newest complete one and `best` (matched by name, so that a moved run keeps its best) always stay; `keep` None or
    0 deletes no complete one. Folders without a marker older than the newest complete one are saves that were cut off,
    and go too. Damaged ones (marker and files disagree) stay for a person to look at. Called by one process.

    Returns:
        The checkpoints that are gone, oldest first.
    """
    run_dir = Path(run_dir)
    for leftover in run_dir.glob(_DELETING + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    complete = find_checkpoints(run_dir)
    if not complete:
        return []
    newest = complete[-1]
    protected = {newest.path.name} | ({Path(best).name} if best else set())
    surplus = max(0, len(complete) - keep) if keep else 0
    old = [c.path for c in complete if c.path.name not in protected][:surplus]
    cut_off = [f for step, f in _folders(run_dir) if step < newest.step and not (f / MARKER).exists()]
    doomed = sorted(old + [f for f in cut_off if f.name not in protected], key=_step)
    for folder in doomed:
        delete(folder)
    return doomed


def delete(folder: Path) -> None:
    """Delete a checkpoint so that no kill leaves half of it under its name: rename first, then remove.

    What cannot be removed now (a file still open on a network file system) goes at the next `rotate`. Use it also
    before saving into a `checkpoint-N` that a cut-off save left: its stale files would be listed with the new ones.
    """
    folder = Path(folder)
    grave = folder.with_name(_DELETING + folder.name)
    shutil.rmtree(grave, ignore_errors=True)
    rename(folder, grave)
    shutil.rmtree(grave, ignore_errors=True)


def write_json_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that `path` holds the old content or the new, never a part, whatever is killed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _fsync(path.parent)


def flush(files: Iterable[Path]) -> dict[Path, int]:
    """Force the files and the folders that name them to disk; each file's size in bytes."""
    sizes = {file: _flush(file) for file in files}
    # A file is only safe once the folder that names it is on disk, and the folder that names that one.
    for folder in sorted({folder for file in sizes for folder in (file.parent, file.parent.parent)}):
        _fsync(folder)
    return sizes


def rename(folder: Path, target: Path) -> None:
    """Rename and make the new name durable."""
    folder.rename(target)
    _fsync(target.parent)


def _listed_files(directory: Path) -> Iterable[Path]:
    for entry in sorted(directory.iterdir()):
        if not any(fnmatch(entry.name, pattern) for pattern in NOT_LISTED):
            yield from [entry] if entry.is_file() else sorted(p for p in entry.rglob("*") if p.is_file())


def _flush(file: Path) -> int:
    """Force the file to disk; its size in bytes. Opening it also makes a network file system fetch the true size."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_marker(directory: Path) -> dict[str, Any]:
    try:
        text = (directory / MARKER).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{directory.name}: no {MARKER} (the save was cut off)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory.name}: {MARKER} cannot be read ({error})") from None
    try:
        marker = json.loads(text)
        whole = all(isinstance(marker[k], t) for k, t in (("step", int), ("world_size", int), ("files", dict)))
    except (json.JSONDecodeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{directory.name}: {MARKER} is damaged (expected JSON with step, world_size and files)")
    return marker


def _check_size(directory: Path, name: str, size: int) -> None:
    try:
        found = (directory / name).stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{directory.name}: {name} is missing ({size} bytes expected)") from None
    if found != size:
        raise ValueError(f"{directory.name}: {name} has {found} bytes, {size} expected")


def _read_or_none(folder: Path) -> Checkpoint | None:
    try:
        return read(folder)
    except ValueError:
        return None


def _step(folder: Path) -> int:
    named = _NAME.fullmatch(folder.name)
    assert named, f"{folder} is not a checkpoint folder"
    return int(named[1])


def _folders(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, lowest step first."""
    entries = Path(run_dir).iterdir() if Path(run_dir).is_dir() else []
    found = [(_step(e), e) for e in entries if _NAME.fullmatch(e.name) and e.is_dir()]
    return sorted(found)
