"""What nvidia-smi says: GPUs with their MIG instances, ECC errors, remapped rows, throttling, who holds memory.

Fields are asked for in groups: a driver that does not know one refuses the whole question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from train.node_check.bounded import Ended, run_all

COMMAND = "nvidia-smi"
ANSWER_SECONDS = 60  # without persistence mode the driver starts first
_BASE = ("uuid", "pci.bus_id", "driver_version", "memory.used", "name")
_REASONS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
_GONE = re.compile(r"\[?(GPU requires reset|GPU is lost)\]?", re.IGNORECASE)


class Hangs(Exception):
    """nvidia-smi does not answer: the driver is stuck, and the next question would wait as long."""


@dataclass
class Listed:
    """A GPU as the driver lists it, whether the job sees it or not."""

    uuid: str
    bus: str  # 0000:3b:00.0
    name: str
    driver: str
    used_mib: int | None
    migs: list[str] = field(default_factory=list)  # uuids of its MIG instances
    holders: list[str] = field(default_factory=list)  # "python3 (process 4711): 30000 MiB"
    ecc: int | None = None  # uncorrected errors since the driver was loaded
    ecc_ever: int | None = None  # and in its life
    remaps: list[str] = field(default_factory=list)  # "pending", "failed"
    recovery: str = ""  # what the driver asks for, such as Reset
    gone: bool = False

    def is_called(self, uuid: str) -> bool:
        """Whether this is its uuid, or that of one of its MIG instances; with or without a prefix, as torch has it."""
        return plain(uuid) in map(plain, (self.uuid, *self.migs))


def plain(uuid: str) -> str:
    """Without GPU- or MIG-."""
    return re.sub(r"^(gpu|mig)-", "", uuid.lower())


def list_gpus() -> list[Listed]:
    """All GPUs that the driver knows. Questions go side by side: where it is not loaded, each would load it.

    Raises:
        FileNotFoundError: there is no nvidia-smi.
        Hangs: it does not answer.
        ValueError: it fails; with what it says.
    """
    questions = [_question("gpu", _BASE), *(_question(what, fields) for what, fields, _ in _MORE)]
    base, *more, names = _answers([*questions, [COMMAND, "-L"]])
    if base.code:
        raise ValueError(f"nvidia-smi fails: {(base.out + base.err).strip() or f'exit code {base.code}'}")
    found = [_listed(row) for row in _rows(base, _BASE)]
    for (_, fields, put), answer in zip(_MORE, more, strict=True):
        _give(found, _rows(answer, fields), put)
    _add_migs(found, names.out)
    return found


def throttled() -> dict[str, list[str]]:
    """Why the hardware slows each GPU down at this moment: uuid -> reasons, such as hw_thermal_slowdown.

    Raises:
        Hangs: it does not answer.
    """
    for prefix in ("clocks_event_reasons", "clocks_throttle_reasons"):  # from driver 535 on, and before
        fields = ("uuid", *(f"{prefix}.{reason}" for reason in _REASONS))
        (answer,) = _answers([_question("gpu", fields)])
        if answer.code == 0:
            rows = _rows(answer, fields)
            return {uuid: [why for why, cell in zip(_REASONS, cells, strict=True) if cell == "Active"]
                    for uuid, *cells in rows}  # fmt: skip
    return {}


def chosen(listed: list[Listed], visible: str | None) -> list[Listed]:
    """Those that CUDA_VISIBLE_DEVICES names, by number or by the beginning of a uuid; all, without it."""
    if visible is None:
        return listed
    found = []
    for word in filter(None, map(str.strip, visible.split(","))):
        if word.isdigit():
            found += listed[int(word) : int(word) + 1]
            continue
        names = ((gpu, uuid) for gpu in listed for uuid in (gpu.uuid, *gpu.migs))
        found += [gpu for gpu, uuid in names if uuid.lower().startswith(word.lower())][:1]
    return found


def _question(what: str, fields: tuple[str, ...]) -> list[str]:
    return [COMMAND, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]


def _answers(questions: list[list[str]]) -> list[Ended]:
    """Of all questions; one that the driver refuses ends with another code than 0."""
    done = run_all(dict(enumerate(questions)), ANSWER_SECONDS)
    if any(answer.code is None for answer in done.values()):
        raise Hangs(f"nvidia-smi does not answer within {ANSWER_SECONDS} s: the driver or a GPU hangs")
    return list(done.values())


def _rows(answer: Ended, fields: tuple[str, ...]) -> list[list[str]]:
    """None where the driver refuses. Only the last field may hold commas."""
    lines = answer.out.strip().splitlines() if answer.code == 0 else []
    rows = [[cell.strip() for cell in line.split(", ", len(fields) - 1)] for line in lines]
    return [row for row in rows if len(row) == len(fields)]


def _listed(row: list[str]) -> Listed:
    uuid, bus, driver, used, name = row
    return Listed(uuid, kernel_address(bus), name, driver, number(used), gone=any(map(_GONE.search, row)))


def kernel_address(bus: str) -> str:
    """00000000:3B:00.0 as the kernel writes it: 0000:3b:00.0."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else bus.lower()


def number(cell: str) -> int | None:
    """None for [N/A], [Not Supported] and the like."""
    return int(cell) if cell.isdigit() else None


def _give(found: list[Listed], rows: list[list[str]], put: Callable[..., None]) -> None:
    """Each row to the GPU whose uuid it begins with."""
    for uuid, *cells in rows:
        for gpu in found:
            if gpu.uuid == uuid:
                gpu.gone |= any(map(_GONE.search, cells))
                put(gpu, *cells)


def _set_ecc(gpu: Listed, volatile: str, aggregate: str) -> None:
    gpu.ecc, gpu.ecc_ever = number(volatile), number(aggregate)


def _set_remaps(gpu: Listed, pending: str, failure: str = "No") -> None:
    states = (("pending", pending), ("failed", failure))
    gpu.remaps += [name for name, cell in states if cell.lower() == "yes" or (number(cell) or 0) > 0]


def _set_recovery(gpu: Listed, action: str) -> None:
    gpu.recovery = "" if action.startswith("[") or action in ("None", "N/A") else action


def _add_holder(gpu: Listed, pid: str, used: str, name: str) -> None:
    gpu.holders.append(f"{name} (process {pid}): {used} MiB")


def _add_migs(found: list[Listed], text: str) -> None:
    """From `nvidia-smi -L`, where each GPU's line is followed by those of its instances."""
    current: Listed | None = None
    for uuid in _uuids(text):
        if uuid.startswith("GPU-"):
            current = next((gpu for gpu in found if gpu.uuid == uuid), None)
        elif current:
            current.migs.append(uuid)


def _uuids(text: str) -> Iterator[str]:
    for match in re.finditer(r"\(UUID: ((?:GPU|MIG)-[^)\s]+)\)", text):
        yield match[1]


_MORE: tuple[tuple[str, tuple[str, ...], Callable[..., None]], ...] = (
    ("gpu", ("uuid", "ecc.errors.uncorrected.volatile.total", "ecc.errors.uncorrected.aggregate.total"), _set_ecc),
    ("remapped-rows", ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure"), _set_remaps),
    ("gpu", ("uuid", "retired_pages.pending"), _set_remaps),  # what older GPUs have
    ("gpu", ("uuid", "gpu_recovery_action"), _set_recovery),
    ("compute-apps", ("gpu_uuid", "pid", "used_memory", "process_name"), _add_holder),
)
