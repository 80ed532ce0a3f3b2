"""RunFacts: what a run directory says about the order of its rows and how far it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import Manifest, manifest_sha256, read_manifest
from train.checkpoint import folders
from train.checkpoint.folders import Checkpoint
from train.checkpoint.resume import final_model
from train.run.run_record import FILE, read_record

if TYPE_CHECKING:
    from train.loop.row_order import RowOrder

_FACTS = ("rows_per_step", "data_seed", "row_order")


@dataclass(frozen=True)
class RunFacts:
    """One run and its shards."""

    run_dir: Path
    data: Path
    manifest: Manifest
    order: RowOrder
    total_steps: int  # planned
    steps_done: int  # recorded; a run under way may be further
    has_ended: bool
    world_sizes: dict[int, int]  # processes that wrote each checkpoint that is left, by its step

    def state_of(self, step: int) -> str:
        """ "trained", "planned", or "never" for a step after the run's end."""
        if step <= self.steps_done:
            return "trained"
        return "never" if self.has_ended or step > self.total_steps else "planned"


def read_facts(run_dir: Path, data: Path | None = None) -> RunFacts:
    """Read run.json, the markers of checkpoints, and the manifest of the shards.

    Args:
        data: the shard directory, if it is not where run.json says.

    Raises:
        ValueError: no run, other shards than the run's, or a fact that nothing records or that is recorded in two ways.
    """
    from train.loop.row_order import RowOrder

    record = _record(run_dir)
    shards = data or Path(record["data"])
    manifest = _manifest(shards, record)
    complete, final = folders.find_checkpoints(run_dir), final_model(run_dir)
    saved = [*complete, *([final] if final else [])]
    rows, seed, strategy = (_fact(name, record, saved, run_dir) for name in _FACTS)
    order = RowOrder(manifest["splits"]["train"]["rows"], rows, seed, strategy)
    done = max([record.get("saved_step") or 0, *(found.step for found in saved)])
    total = _total_steps(record, saved, run_dir)
    ended = final is not None and final.step == done
    worlds = {found.step: found.world_size for found in saved}
    return RunFacts(run_dir, shards, manifest, order, total, done, ended, worlds)


def _record(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir) if run_dir.is_dir() else None
    if record is None:
        raise ValueError(f"{run_dir}: expected a run directory (a run's output_dir), found no {FILE} in it")
    return record


def _manifest(shards: Path, record: dict[str, Any]) -> Manifest:
    try:
        manifest: Manifest = read_manifest(shards)
    except ValueError as error:
        raise ValueError(f"the run's shards: {error}; --data says where they are now") from None
    if manifest_sha256(shards) != record["manifest_sha256"]:
        raise ValueError(f"{shards} holds other shards than the run was trained on: give those with --data")
    return manifest


def _fact(name: str, record: dict[str, Any], saved: list[Checkpoint], run_dir: Path) -> Any:
    """One value that all records of it agree on; a resume keeps it, in any world size."""
    recorded = [record.get("order", {}).get(name), *(found.extra.get(name) for found in saved)]
    values = list(dict.fromkeys(value for value in recorded if value is not None))
    if len(values) == 1:
        return values[0]
    if not values:
        raise ValueError(
            f"neither {run_dir / FILE} nor a checkpoint says {name}, as an older version started the run: start it "
            "once more, which records it"
        )
    raise ValueError(f"{run_dir}: {name} is recorded as {' and as '.join(map(str, values))}: the order is not known")


def _total_steps(record: dict[str, Any], saved: list[Checkpoint], run_dir: Path) -> int:
    if total := record.get("order", {}).get("total_steps"):
        return int(total)
    for found in reversed(saved):
        try:
            return int(json.loads((found.path / "trainer_state.json").read_text(encoding="utf-8"))["max_steps"])
        except (OSError, ValueError, KeyError):
            continue
    raise ValueError(
        f"neither {run_dir / FILE} nor a checkpoint says how many steps the run has: start it once more, which records "
        "it"
    )
