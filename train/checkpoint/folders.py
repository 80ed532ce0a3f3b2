"""Checkpoint folders: published by a marker that is written last, read, verified, quarantined, deleted in rotation.

    packhaul checkpoint list|verify|prune RUN_DIR

A checkpoint is written (`train.checkpoint.saving`) under a name that nothing takes for one. It gets its name when
`complete.json`, written last and atomically, lists every file with its size and digest. A folder counts only when all
sizes agree; `verify` compares the digests as well. No heavy imports: this answers at once.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.run.atomic_files import DIGEST, FileRecord, digest, flush, fsync_folder, rename, write_json_atomically

if TYPE_CHECKING:
    from transformers import TrainingArguments

MARKER = "complete.json"
# Names at the top of a run directory that live on after the final model is published, so they are no part of it.
NOT_LISTED = (
    *(MARKER, ".*", "checkpoint-*", "damaged-*", "aside-*", "run.json", "preempted.json"),
    *("samples.jsonl", "report.html", "bad_steps", "evaluation", "starts", "scores*.jsonl*", "README.md"),
    *("runs", "wandb", "logs", "*.log", "*.out"),
)

_NAME = re.compile(r"checkpoint-(\d+)")
_DELETING = ".deleting-"
_SAVING = ".saving-"
UNIVERSAL = ".universal-"
_QUARANTINED = "damaged-"
_ARCHIVED = "aside-"
_NAMED = 3  # files that a message names
_OWN_KEYS = ("step", "world_size", "files", "digests", "digest")


@dataclass(frozen=True)
class Checkpoint:
    """A complete saved state."""

    path: Path
    step: int  # optimizer steps done
    world_size: int  # processes that wrote it; another number needs `train.checkpoint.world_size`
    extra: dict[str, Any]  # whatever else the writer recorded (manifest_sha256, ...)
    files: dict[str, FileRecord]  # by path below the folder

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(record.size for record in self.files.values())


def publish(
    directory: Path,
    *,
    step: int,
    world_size: int,
    extra: dict[str, Any],
    files: Mapping[str, FileRecord] | None = None,
) -> None:
    """Declare `directory` complete: flush all its files to disk, then write the marker that lists them.

    Called by one process after a barrier behind which every process has closed its files. Works for `checkpoint-N` and
    for a run directory holding the final model (see NOT_LISTED for what is left out).

    Args:
        files: what the writers found, who have flushed them already; None: this process reads and flushes them all.

    Raises:
        ValueError: there is nothing to publish, or `extra` uses one of the marker's own keys.
    """
    directory = Path(directory)
    if clash := set(_OWN_KEYS) & extra.keys():
        raise ValueError(f"extra may not hold {sorted(clash)}: these are the marker's own keys")
    if files is None:
        files = {f.relative_to(directory).as_posix(): record for f, record in flush(_listed_files(directory)).items()}
    else:
        for folder in sorted({(directory / name).parent for name in files} | {directory, directory.parent}):
            fsync_folder(folder)
    if not files:
        raise ValueError(f"{directory}: expected the files of a saved state, found none: save before publish()")
    marker = {"step": step, "world_size": world_size, **extra, "files": {n: files[n].size for n in sorted(files)}}
    digests = {name: files[name].digest for name in sorted(files)}
    write_json_atomically(directory / MARKER, {**marker, "digest": DIGEST, "digests": digests})


def saving_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it has its name."""
    return Path(run_dir) / f"{_SAVING}{step}"


def universal_folder(run_dir: Path, step: int) -> Path:
    """Where the states of a checkpoint are rearranged for another number of processes."""
    return Path(run_dir) / f"{UNIVERSAL}{step}"


def give_name(folder: Path, target: Path) -> None:
    """Rename a folder that holds its marker to its name as a checkpoint; an older folder of that name is deleted."""
    if target.exists():
        delete(target)
    rename(folder, target)


def withdraw(directory: Path) -> None:
    """Remove the marker before `directory` is written again: half-replaced files may have the sizes it lists."""
    (Path(directory) / MARKER).unlink(missing_ok=True)
    fsync_folder(Path(directory))


def read(directory: Path) -> Checkpoint:
    """Check `directory` against its marker, by sizes.

    Raises:
        ValueError: no marker, an unreadable one, or a listed file that is missing or has another size.
    """
    directory = Path(directory)
    marker = _read_marker(directory)
    if lacks := [p for name, size in marker["files"].items() if (p := _size_problem(directory / name, name, size))]:
        more = f", and {len(lacks) - _NAMED} more file(s)" if len(lacks) > _NAMED else ""
        raise ValueError(f"{directory.name}: {', '.join(lacks[:_NAMED])}{more}")
    digests = marker.get("digests", {}) if marker.get("digest") == DIGEST else {}
    files = {name: FileRecord(size, digests.get(name)) for name, size in marker["files"].items()}
    extra = {k: v for k, v in marker.items() if k not in _OWN_KEYS}
    checkpoint = Checkpoint(directory, marker["step"], marker["world_size"], extra, files)
    named = _NAME.fullmatch(directory.name)
    if named and int(named[1]) != checkpoint.step:
        raise ValueError(f"{directory.name}: {MARKER} is of step {checkpoint.step} (the folder was renamed)")
    return checkpoint


def verify(checkpoint: Checkpoint, share: int = 0, shares: int = 1) -> Iterator[str]:
    """Read a checkpoint's files and compare their digests; what differs.

    Args:
        share, shares: read only share number `share` of `shares` of about the same size, so that ranks can divide it.
    """
    totals = [0] * shares
    for name, record in sorted(checkpoint.files.items(), key=lambda item: (-item[1].size, item[0])):
        mine = totals.index(min(totals))
        totals[mine] += record.size
        if mine != share or record.digest is None:
            continue
        try:
            found = digest(checkpoint.path / name)
        except OSError as error:
            yield f"{checkpoint.path.name}: {name} cannot be read ({error})"
            continue
        if found != record.digest:
            yield f"{checkpoint.path.name}: {name} is not what was written ({DIGEST} {found}, {record.digest} expected)"


def quarantine(checkpoint: Checkpoint) -> Path:
    """Rename a checkpoint that was found damaged, so that nothing takes it for a good one; where it is now."""
    target = checkpoint.path.with_name(_QUARANTINED + checkpoint.path.name)
    shutil.rmtree(target, ignore_errors=True)
    rename(checkpoint.path, target)
    return target


def archive(folder: Path) -> Path:
    """Rename a checkpoint that was given up on purpose, for another course of the run; where it is now."""
    target = folder.with_name(_ARCHIVED + folder.name)
    shutil.rmtree(target, ignore_errors=True)
    rename(folder, target)
    return target


def run_dir_of(args: TrainingArguments) -> Path:
    """The run directory of a launch."""
    assert args.output_dir is not None, "TrainingArguments give it a name where none is asked for"
    return Path(args.output_dir)


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint, not a run directory."""
    return _NAME.fullmatch(name) is not None


def find_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    return [c for folder in named_folders(run_dir) if (c := _read_or_none(folder))]


def newest_complete(run_dir: Path, log: Callable[[str], None]) -> Checkpoint | None:
    """The complete checkpoint with the highest step, or None; `log` gets a line for each newer folder passed over."""
    for folder in reversed(named_folders(run_dir)):
        try:
            return read(folder)
        except ValueError as error:
            log(f"{error}: passed over")
    return None


def rotate(run_dir: Path, *, keep: int | None, best: Path | None) -> list[Path]:
    """Delete what `surplus` names, and what earlier deletions left. Called by one process.

    Returns:
        The checkpoints that are gone, oldest first.
    """
    clean(run_dir, _DELETING)
    doomed = surplus(run_dir, keep=keep, best=best)
    for folder in doomed:
        delete(folder)
    return doomed


def surplus(run_dir: Path, *, keep: int | None, best: Path | None) -> list[Path]:
    """The checkpoints to delete, oldest first, as `save_total_limit` means it: `keep` stay, the best one among them.

    The newest complete one and `best` (matched by name, so that a moved run keeps its best) always stay; with `keep`
    None or 0 all complete ones do. Folders without a marker older than the newest complete one are saves that were cut
    off, and go too. Damaged ones (marker and files disagree) stay for a person to look at.
    """
    complete = find_checkpoints(run_dir)
    if not complete:
        return []
    newest = complete[-1]
    protected = {newest.path.name} | ({Path(best).name} if best else set())
    too_many = max(0, len(complete) - keep) if keep else 0
    old = [c.path for c in complete if c.path.name not in protected][:too_many]
    cut_off = [f for f in named_folders(run_dir) if step_of(f) < newest.step and not (f / MARKER).exists()]
    return sorted(old + [f for f in cut_off if f.name not in protected], key=step_of)


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


def leftovers(run_dir: Path, *prefixes: str) -> list[Path]:
    """Saves and deletions under way, or cut off by a kill."""
    wanted = prefixes or (_DELETING, _SAVING, UNIVERSAL)
    return [folder for prefix in wanted for folder in sorted(Path(run_dir).glob(prefix + "*"))]


def clean(run_dir: Path, *prefixes: str) -> list[Path]:
    """Remove the leftovers; what they were. Nobody may be saving."""
    found = leftovers(run_dir, *prefixes)
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _listed_files(directory: Path) -> Iterable[Path]:
    for entry in sorted(directory.iterdir()):
        if any(fnmatch(entry.name, pattern) for pattern in NOT_LISTED):
            continue
        if entry.is_file():
            yield entry
        else:
            yield from sorted(p for p in entry.rglob("*") if p.is_file())


def _read_marker(directory: Path) -> dict[str, Any]:
    try:
        text = (directory / MARKER).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{directory.name}: no {MARKER} (the save was cut off, or the file was removed)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory.name}: {MARKER} cannot be read ({error})") from None
    try:
        marker: dict[str, Any] = json.loads(text)
        whole = all(isinstance(marker[k], t) for k, t in (("step", int), ("world_size", int), ("files", dict)))
    except (json.JSONDecodeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{directory.name}: {MARKER} is damaged (expected JSON with step, world_size and files)")
    return marker


def _size_problem(file: Path, name: str, size: int) -> str | None:
    try:
        found = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing ({size} bytes expected)"
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None if found == size else f"{name} has {found} bytes, {size} expected"


def _read_or_none(folder: Path) -> Checkpoint | None:
    try:
        return read(folder)
    except ValueError:
        return None


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    named = _NAME.fullmatch(folder.name)
    assert named, f"{folder} is not a checkpoint folder"
    return int(named[1])


def named_folders(run_dir: Path) -> list[Path]:
    """Everything named like a checkpoint, complete or not, lowest step first."""
    entries = Path(run_dir).iterdir() if Path(run_dir).is_dir() else []
    return sorted((e for e in entries if is_checkpoint_name(e.name) and e.is_dir()), key=step_of)
