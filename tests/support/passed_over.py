"""Hooks of pytest: the collector of garbage passes over what has been imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator

import pytest

ENOUGH = 50  # new modules
_MODULES = {"passed over": 0}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Garbage is not collected while test modules import, which leaves hardly any. From then on the collector passes
    over what they have imported: trainers call it often, and forks would copy all of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        pass_over_imports()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """The collector passes over what tests import late as well: half of a short training run went into it."""
    try:
        return (yield)
    finally:
        if len(sys.modules) >= _MODULES["passed over"] + ENOUGH:
            pass_over_imports()


def pass_over_imports() -> None:
    """Garbage is collected; what is left now is never looked at again."""
    gc.collect()
    gc.freeze()
    _MODULES["passed over"] = len(sys.modules)
