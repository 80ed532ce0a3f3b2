"""train.config.option_help: every option is listed, at once, since the libraries are not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from train.config.own_options import known_options
from train.config.run_config import load_run_config

HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "pyarrow", "numpy"}
MOST_MODULES = 300  # about 200 now; a library that is slow to import brings hundreds


class TestHelp:
    """Answered at once: what takes seconds is importing libraries, so that is what is counted."""

    def run(self, *words: str) -> subprocess.CompletedProcess:
        """A command; the last line on stderr says which heavy modules it has imported, and how many in all."""
        said = f"print(sorted({HEAVY} & set(sys.modules)), len(sys.modules), file=sys.stderr)"
        code = f"import atexit, runpy, sys; atexit.register(lambda: {said}); sys.argv = sys.argv[1:]; "
        code += "runpy.run_module(sys.argv[0], run_name='__main__')"
        return subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)

    def assert_little_is_imported(self, done: subprocess.CompletedProcess) -> None:
        heavy, _, number = done.stderr.splitlines()[-1].rpartition(" ")
        assert heavy == "[]" and int(number) < MOST_MODULES

    def test_lists_every_option_at_once(self):
        done = self.run("train.preflight", "--help")
        assert done.returncode == 0
        self.assert_little_is_imported(done)
        for name in known_options():
            assert f"--{name}" in done.stdout

    def test_of_training_itself(self, capsys):
        with pytest.raises(SystemExit) as stop:
            load_run_config(["--seed", "1", "--help"])
        assert stop.value.code == 0
        assert "--learning_rate float" in capsys.readouterr().out

    def test_an_error_comes_at_once(self):
        done = self.run("train.preflight", "--learning_rat", "1")
        assert done.returncode == 2 and "did you mean 'learning_rate'?" in done.stdout + done.stderr
        self.assert_little_is_imported(done)
