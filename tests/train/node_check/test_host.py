"""Limits, memory, interface and the name of the first node."""

from __future__ import annotations

import resource
import socket
import time
from types import SimpleNamespace

import psutil
import pytest

from train.node_check import host
from train.node_check.expected import Expected
from train.node_check.host import interface_problems, limit_problems, name_problems


@pytest.fixture
def computer(tmp_path, monkeypatch):
    """With room for everything: 4,096 open files, 2 GiB of /dev/shm, 8 GiB of memory, no control group."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(host, "SHM", tmp_path)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: SimpleNamespace(total=2**31, free=2**31))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (4096, 4096))
    return monkeypatch


def test_a_computer_with_room(computer):
    assert list(limit_problems(Expected(gpus=8, processes=8))) == []


@pytest.mark.parametrize(("files", "few"), [((512, 4096), True), ((1024, 4096), False), ((-1, -1), False)])
def test_open_files(computer, files, few):
    computer.setattr(resource, "getrlimit", lambda what: files)
    found = list(limit_problems(Expected()))
    assert found == (["512 open files allowed, 1024 expected: raise `ulimit -n` where you submit"] if few else [])


def test_a_container_s_small_shm(computer, tmp_path):
    computer.setattr(host.shutil, "disk_usage", lambda path: SimpleNamespace(total=2**26, free=2**25))
    (problem,) = limit_problems(Expected())
    assert problem.startswith(f"{tmp_path} has 32 of 64 MiB free, 512 expected")


@pytest.mark.parametrize(("gpus", "processes", "few"), [(8, 9, True), (8, 8, False), (0, 9, False), (0, 33, True)])
def test_memory(computer, gpus, processes, few):
    found = list(limit_problems(Expected(gpus=gpus, processes=processes)))
    assert len(found) == few
    assert not few or found[0].startswith("8192 MiB of memory are free, ")


@pytest.mark.parametrize(
    ("line", "folder", "limit", "use"),
    [
        ("0::/slurm/job_1/step_0", "slurm", "memory.max", "memory.current"),
        ("4:cpu,memory:/slurm/job_1", "memory/slurm/job_1", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_memory_of_the_control_group(computer, tmp_path, line, folder, limit, use):
    group = tmp_path / "groups" / folder
    group.mkdir(parents=True)
    (group / limit).write_text(f"{3 * 2**30}\n")
    (group / use).write_text(f"{2 * 2**30}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {2**29}\nactive_file 0\n")
    (tmp_path / "own").write_text(f"1:name=systemd:/x\n{line}\n")
    computer.setattr(host, "OWN_GROUPS", tmp_path / "own")
    computer.setattr(host, "CGROUP", tmp_path / "groups")
    assert host.free_memory_mib() == 1536
    (group / limit).write_text("max\n" if limit == "memory.max" else f"{2**63 - 4096}\n")
    assert host.free_memory_mib() == 8192


def address(text):
    return SimpleNamespace(family=socket.AF_INET6 if ":" in text else socket.AF_INET, address=text)


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        (("ib0",), None), (("ib0", "eth0"), None), ((), None),
        (("ib7",), "no network interface ib7 (PACKHAUL_NETWORK_INTERFACE); it has: eth0 ib0 ib1 ib2"),
        (("ib0", "ib1"), "the network interface ib1 is down (PACKHAUL_NETWORK_INTERFACE)"),
        (("ib2",), "the network interface ib2 has no address (PACKHAUL_NETWORK_INTERFACE)"),
    ],
)  # fmt: skip
def test_the_interface(monkeypatch, named, problem):
    states = {name: SimpleNamespace(isup=name != "ib1") for name in ("ib0", "ib1", "ib2", "eth0")}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"ib0": [address("10.0.0.1")], "eth0": [address("fe80::1")]})
    found = list(interface_problems(named))
    assert len(found) == (problem is not None) and (problem is None or found[0].startswith(problem))


@pytest.mark.parametrize(
    ("addresses", "is_first", "has_interface", "means"),
    [
        (["10.0.0.1"], True, False, None), (["127.0.1.1", "10.0.0.1"], False, False, None),
        (["127.0.1.1"], True, False, "itself"), (["::1"], True, False, "itself"),
        (["127.0.1.1"], True, True, None), (["127.0.1.1", "::1"], False, True, "this node instead"),
    ],
)  # fmt: skip
def test_a_name_that_means_the_computer_itself(monkeypatch, addresses, is_first, has_interface, means):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, 0)) for text in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: entries)
    found = list(name_problems("node1", is_first, has_interface))
    assert len(found) == (means is not None)
    assert not means or found[0] == (
        f"the name of the first node, node1, is {', '.join(sorted(addresses))} here, which means {means}: "
        "set PACKHAUL_NETWORK_INTERFACE, or have its name mended in /etc/hosts"
    )


def test_a_name_that_nobody_knows_or_answers(monkeypatch):
    (problem,) = name_problems("no-such-node.invalid", False, True)
    assert "no-such-node.invalid, is not known here (" in problem
    monkeypatch.setattr(host, "NAME_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(5))
    (problem,) = name_problems("node1", False, True)
    assert "is not answered within 0.1 s: the name server hangs" in problem


def test_versions(monkeypatch):
    monkeypatch.setattr(host, "git_commit", lambda: "abc-dirty")
    found = host.versions()
    assert set(found) == {"python", "torch", "commit"} and found["commit"] == "abc-dirty"
    monkeypatch.setattr(host, "git_commit", lambda: None)  # no repository: not known, and not compared
    assert "commit" not in host.versions()
