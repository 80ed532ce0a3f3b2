"""A test that hangs ends by a limit of its own and says where it was; the next ones run."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

HANGING = """
import threading

never = threading.Event()

def waits_in_a_thread():
    never.wait()

def test_that_hangs():
    threading.Thread(target=waits_in_a_thread, daemon=True).start()
    never.wait()

def test_after_it():
    pass
"""


def test_a_hanging_test_fails_with_the_stacks_of_all_threads(tmp_path):
    (tmp_path / "test_hanging.py").write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--timeout", "2", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 1 and "1 failed, 1 passed" in output
    assert "Timeout (>2.0s) from pytest-timeout" in output
    assert "in waits_in_a_thread" in output  # another thread
    assert ">       never.wait()" in output and "test_hanging.py:11: " in output  # where the test itself was


def test_each_test_has_a_limit(pytestconfig):
    """Above what any test gives its own processes, whose output says more; below that of faulthandler, which prints the
    stacks where no signal gets through, and ends the run."""
    from tests.support.training import TIMEOUT

    limit = float(pytestconfig.getini("timeout"))
    assert pytestconfig.getini("timeout_method") == "signal"
    assert TIMEOUT < limit < float(pytestconfig.getini("faulthandler_timeout"))
    assert pytestconfig.getini("faulthandler_exit_on_timeout")
