"""The computer: limits, memory, interface, the first node's name, versions of what runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import ipaddress
import platform
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from train.node_check.bounded import within
from train.node_check.expected import Expected
from train.run.run_record import git_commit

MIN_OPEN_FILES = 1024  # each process opens a connection to many others, and files of the data
MIN_SHM_MIB = 512  # free in /dev/shm: NCCL, DeepSpeed and workers hand tensors over in it
MIN_MEMORY_MIB = 1024  # free, for each process of the training; with a GPU
MIN_CPU_MEMORY_MIB = 256  # and without
GIT_SECONDS = 30.0  # on a slow file system
NAME_SECONDS = 20.0  # for an answer of the name server
SHM, MEMINFO = Path("/dev/shm"), Path("/proc/meminfo")
CGROUP, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LOOPBACK = "set PACKHAUL_NETWORK_INTERFACE, or have its name mended in /etc/hosts"


def host_problems(expected: Expected, rank: int, nodes: int) -> Iterator[str]:
    """What this computer lacks."""
    yield from limit_problems(expected)
    yield from interface_problems(expected.interfaces)
    if nodes > 1 and expected.main_host:
        yield from name_problems(expected.main_host, rank == 0, bool(expected.interfaces))


def limit_problems(expected: Expected) -> Iterator[str]:
    """Open files, /dev/shm, memory."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < MIN_OPEN_FILES:
        yield f"{files} open files allowed, {MIN_OPEN_FILES} expected: raise `ulimit -n` where you submit"
    if SHM.is_dir():
        usage = shutil.disk_usage(SHM)
        if usage.free < MIN_SHM_MIB * 2**20:
            sizes = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
            yield f"{SHM} has {sizes}, {MIN_SHM_MIB} expected: remove what is left in it, or give the container more"
    least = expected.processes * (MIN_CPU_MEMORY_MIB if expected.gpus == 0 else MIN_MEMORY_MIB)
    free = free_memory_mib()
    if free is not None and free < least:
        yield f"{free} MiB of memory are free, {least} expected for {expected.processes} process(es)"


def free_memory_mib() -> int | None:
    """What this job may still take: of the computer, and of its control group; None if the kernel does not say."""
    found = []
    for line in MEMINFO.read_text().splitlines() if MEMINFO.exists() else []:
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) // 1024)
    for limit, used in _group_limits():
        found.append(max(0, limit - used) // 2**20)
    return min(found, default=None)


def _group_limits() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes, of this process's control group and those above it, of version 2 or 1."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _limits(CGROUP, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _limits(CGROUP / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _limits(top: Path, path: str, limit: str, use: str) -> Iterator[tuple[int, int]]:
    folder = top / path.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(top):
            return
        files = (group / limit, group / use)
        numbers = [file.read_text().strip() for file in files if file.is_file()]
        if len(numbers) == 2 and numbers[0] != "max":
            yield int(numbers[0]), int(numbers[1]) - _reclaimable(group)


def _reclaimable(group: Path) -> int:
    """Bytes of cached files, which the kernel gives back before anything else."""
    stat = group / "memory.stat"
    lines = stat.read_text().splitlines() if stat.is_file() else []
    sizes = {name: int(size) for name, size in map(str.split, lines)}
    names = ("inactive_file", "active_file")
    return sum(sizes.get(f"total_{name}", sizes.get(name, 0)) for name in names)  # version 1: with the groups below


def interface_problems(interfaces: tuple[str, ...]) -> Iterator[str]:
    """Of those that PACKHAUL_NETWORK_INTERFACE names: absent, down, or without an address."""
    import psutil

    states, addresses = psutil.net_if_stats(), psutil.net_if_addrs()
    for name in interfaces:
        if name not in states:
            there = " ".join(sorted(states))
            yield f"no network interface {name} (PACKHAUL_NETWORK_INTERFACE); it has: {there}"
        elif not states[name].isup:
            yield f"the network interface {name} is down (PACKHAUL_NETWORK_INTERFACE): bring it up, or name another"
        elif not any(a.family in (socket.AF_INET, socket.AF_INET6) for a in addresses.get(name, ())):
            yield f"the network interface {name} has no address (PACKHAUL_NETWORK_INTERFACE): give it one"


def name_problems(host: str, is_first: bool, has_interface: bool) -> Iterator[str]:
    """Of the first node's name: unknown here, or an address that only means this computer.

    On the first node itself that is harmless where the interface is given: nothing is derived from its name then.
    """
    try:
        found = within(NAME_SECONDS, lambda: socket.getaddrinfo(host, None))
    except TimeoutError:
        yield f"the name of the first node, {host}, is not answered within {NAME_SECONDS:g} s: the name server hangs"
        return
    except OSError as error:
        yield f"the name of the first node, {host}, is not known here ({error}): mend the name server or /etc/hosts"
        return
    addresses = sorted({str(entry[4][0]).partition("%")[0] for entry in found})
    if all(ipaddress.ip_address(address).is_loopback for address in addresses) and not (is_first and has_interface):
        whom = "itself" if is_first else "this node instead"
        yield f"the name of the first node, {host}, is {', '.join(addresses)} here, which means {whom}: {LOOPBACK}"


def versions() -> dict[str, str]:
    """Of Python, torch and this project's commit; what is not known is left out."""
    found = {"python": platform.python_version()}
    with contextlib.suppress(TimeoutError):
        found["commit"] = within(GIT_SECONDS, git_commit) or ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["torch"] = importlib.metadata.version("torch")
    return {name: version for name, version in found.items() if version}
