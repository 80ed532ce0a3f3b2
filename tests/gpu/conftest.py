"""Where the tests run: on a GPU, or in a rehearsal on a CPU with a stand-in for the kernel (PACKHAUL_REHEARSAL=1)."""

from __future__ import annotations

import os

import pytest
import torch

from tests.gpu import figures, stand_in

# Read once in a process, at its first matrix product: too late when a test asks for determinism.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Of models that are wide enough for the kernels.
HEADS = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


def pytest_collection_modifyitems(items):
    """Skip what is in this folder where there is neither a GPU nor a rehearsal."""
    if torch.cuda.is_available() or stand_in.rehearsing():
        return
    for item in items:
        if item.path.parent.name == "gpu" and item.path.parent.parent.name == "tests":
            item.add_marker(pytest.mark.skip(reason="no GPU, and no rehearsal of one (PACKHAUL_REHEARSAL=1)"))


def pytest_runtest_logreport(report):
    """Into the stage's figures as each test ends, so that a time limit costs only those that had not run."""
    if (path := figures.own_file()) and (report.when == "call" or not report.passed):
        figures.append(path, {report.nodeid.split("::", 1)[-1]: report.outcome})


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; in a rehearsal the CPU, with the kernel replaced."""
    if not stand_in.rehearsing():
        return torch.device("cuda")
    stand_in.install()
    return torch.device("cpu")


@pytest.fixture
def kernel_used(device):
    """The test trains through the varlen kernel: a rehearsal counts its calls."""
    before = len(stand_in.CALLS)
    yield
    if device.type == "cpu":
        assert "backward" in stand_in.CALLS[before:], "the varlen kernel was not called"
