"""The GPUs that the job sees on this node: what their driver, the kernel and a timed run say of each."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from train.node_check import amd, kernel_log, nvidia
from train.node_check.bounded import Ended, run, run_all
from train.node_check.findings import Gpu, Node
from train.node_check.nvidia import Hangs, Listed

COUNT_SECONDS = 120.0  # to import torch from a slow file system and to find the GPUs
SPEED_SECONDS = 120.0  # for all GPUs side by side
GPUS_SECONDS = COUNT_SECONDS + SPEED_SECONDS + 2 * nvidia.ANSWER_SECONDS + 30  # dmesg, too
ASK_SECONDS = 0.5  # between two questions to nvidia-smi
HELD_MIB = 2048  # in use before we start: more than the driver needs
CHILD = [sys.executable, "-m", "train.node_check.gpu_process"]


@dataclass
class Driver:
    """What the driver's tool and the kernel say, before any GPU is used."""

    listed: list[Listed]
    xids: list[kernel_log.Xid]
    problems: list[str]
    notes: list[str]
    can_ask: bool = False  # again, while the GPUs work; a tool that hangs is not asked again

    def of(self, gpu: Gpu) -> Listed | None:
        """The entry of a GPU that torch sees."""
        by_uuid = (entry for entry in self.listed if gpu.uuid and entry.is_called(gpu.uuid))
        by_bus = (entry for entry in self.listed if gpu.bus and entry.bus == gpu.bus)
        return next(by_uuid, None) or next(by_bus, None)


def look_at_gpus(node: Node, expected: int | None) -> None:
    """Add GPUs, driver and problems to the node. Bounded by GPUS_SECONDS.

    Args:
        expected: how many the training uses; None: all that are there.
    """
    driver = ask_driver(nvidia)
    counted = _count(node)
    if counted and counted["hip"]:
        driver = ask_driver(amd)
    node.problems += driver.problems
    node.notes += driver.notes
    node.gpus = _gpus_of(counted, driver, expected)
    node.versions |= {"CUDA": counted["cuda"]} if counted and counted["cuda"] else {}
    node.versions |= {"driver": driver.listed[0].driver} if driver.listed else {}
    if counted:
        node.problems += _count_problems(counted, driver, expected)
    for gpu in node.gpus:
        node.problems += [f"{gpu.label}: {problem}" for problem in driver_problems(gpu, driver)]
        node.notes += [f"{gpu.label}: {note}" for note in _driver_notes(gpu, driver)]
    if counted:
        _measure(node, driver)


def ask_driver(tool: Any) -> Driver:
    """What `tool` (a module with list_gpus) and the kernel's log say."""
    driver = Driver([], [], [], [])
    try:
        driver.listed = tool.list_gpus()
        driver.can_ask = tool is nvidia
    except FileNotFoundError:
        driver.notes.append(f"no {tool.COMMAND} here: the driver's counters were not looked at")
    except (Hangs, OSError, ValueError) as error:
        driver.problems.append(str(error))
    driver.xids = kernel_log.xids() or []
    return driver


def _count(node: Node) -> dict[str, Any] | None:
    """What torch sees, as gpu_process says; None, with a problem, where it does not answer."""
    done = run([*CHILD, "count"], COUNT_SECONDS)
    found = result_of(done)
    if done.code is None:
        node.problems.append(f"torch has not counted the GPUs within {COUNT_SECONDS:g} s: the driver or a GPU hangs")
    elif found is None:
        node.problems.append(f"torch cannot count the GPUs: {done.last_words}")
    return found


def result_of(done: Ended) -> dict[str, Any] | None:
    """The result of a process of gpu_process that ended well: its last line that is JSON."""
    for line in reversed(done.out.splitlines() if done.code == 0 else []):
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return None


def _gpus_of(counted: dict[str, Any] | None, driver: Driver, expected: int | None) -> list[Gpu]:
    """Those that the training uses: the first ones that torch sees; where it does not answer, that the driver lists."""
    if counted:
        return [Gpu(index, **device) for index, device in enumerate(counted["devices"])][:expected]
    listed = nvidia.chosen(driver.listed, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return [Gpu(index, entry.name, entry.uuid, entry.bus) for index, entry in enumerate(listed)][:expected]


def _count_problems(counted: dict[str, Any], driver: Driver, expected: int | None) -> Iterator[str]:
    names = [device["name"] for device in counted["devices"]]
    if len(names) >= (1 if expected is None else expected):
        return
    wanted = "at least 1 GPU" if expected is None else f"{expected} GPUs (PACKHAUL_GPUS_PER_NODE)"
    found = f"{len(names)} ({', '.join(names)})" if names else "none"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    build = "" if counted["cuda"] else "; this torch is built for CPUs"
    yield f"expected {wanted}, found {found}; CUDA_VISIBLE_DEVICES: {visible}, in the node: {len(driver.listed)}{build}"


def driver_problems(gpu: Gpu, driver: Driver) -> Iterator[str]:
    """What makes a GPU unfit, by its driver and the kernel's log; its fields are filled in."""
    entry = driver.of(gpu)
    gpu.bus = gpu.bus or (entry.bus if entry else "")
    xids = [xid for xid in driver.xids if xid.is_of(gpu.bus)]
    gpu.xids = sorted({xid.number for xid in xids})
    yield from kernel_log.in_words(xid for xid in xids if xid.is_serious)
    if entry is None:
        return
    gpu.ecc_uncorrected, gpu.remaps = entry.ecc, ", ".join(entry.remaps)
    if entry.gone:
        yield "is lost or asks for a reset"
    if entry.recovery:
        yield f"its driver asks for: {entry.recovery}"
    if entry.ecc:
        yield f"{entry.ecc} uncorrected memory errors since the driver was loaded: reset the GPU"
    if entry.remaps:
        yield f"remapping of bad memory rows {', '.join(entry.remaps)}: reset the GPU, or have it replaced if it failed"
    if not entry.migs:  # of a MIG instance gpu_process says what is in use
        gpu.held_mib = entry.used_mib
        yield from held_problem(gpu, driver)


def held_problem(gpu: Gpu, driver: Driver) -> Iterator[str]:
    """Who holds memory before we start."""
    if (gpu.held_mib or 0) <= HELD_MIB:
        return
    entry = driver.of(gpu)
    holders = "; ".join(entry.holders) if entry else ""
    yield f"{gpu.held_mib} MiB are in use before we start, by {holders or 'a process that this job cannot see'}"


def _driver_notes(gpu: Gpu, driver: Driver) -> Iterator[str]:
    yield from kernel_log.in_words(xid for xid in driver.xids if xid.is_of(gpu.bus) and not xid.is_serious)
    entry = driver.of(gpu)
    if entry and entry.ecc_ever and not entry.ecc:
        yield f"{entry.ecc_ever} uncorrected memory errors in its life"


def _measure(node: Node, driver: Driver) -> None:
    """Time all GPUs side by side, and ask meanwhile whether the hardware slows one down."""
    reasons: dict[str, set[str]] = {}
    last = [0.0]

    def ask() -> None:
        if driver.can_ask and time.monotonic() - last[0] > ASK_SECONDS:
            node.notes += _ask_throttled(driver, reasons)
            last[0] = time.monotonic()

    done = run_all({gpu.index: [*CHILD, "speed", str(gpu.index)] for gpu in node.gpus}, SPEED_SECONDS, ask)
    for gpu in node.gpus:
        entry = driver.of(gpu)
        gpu.throttled = sorted(reasons.get(entry.uuid, ())) if entry else []
        node.problems += [f"{gpu.label}: {problem}" for problem in _speed_problems(gpu, done[gpu.index], driver)]


def _ask_throttled(driver: Driver, reasons: dict[str, set[str]]) -> Iterator[str]:
    """Add the reasons of this moment, by uuid; a note where nvidia-smi does not answer any more."""
    try:
        for uuid, found in nvidia.throttled().items():
            reasons.setdefault(uuid, set()).update(found)
    except (Hangs, OSError) as error:
        driver.can_ask = False
        yield f"while the GPUs work: {error}"


def _speed_problems(gpu: Gpu, done: Ended, driver: Driver) -> Iterator[str]:
    found = result_of(done)
    if found:
        gpu.tflops, gpu.copy_gbs = found["tflops"], found["copy_gbs"]
        yield from (f"{what} comes out wrong: have it replaced" for what in found["wrong"])
        if gpu.held_mib is None:
            gpu.held_mib = found["held_mib"]
            yield from held_problem(gpu, driver)
    elif done.code is None:
        yield f"hangs: a matrix product and a copy took longer than {SPEED_SECONDS:g} s"
    else:
        yield f"cannot be used: {done.last_words}"
    if gpu.throttled:
        yield f"the hardware slows it down under load: {', '.join(gpu.throttled)} (heat, power or a fault)"
