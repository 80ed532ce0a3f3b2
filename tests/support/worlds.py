"""Worlds of training processes for tests, from one process that has imported everything: see world_runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.support.training import environment, kill
from tests.support.world_runs import CODES


class Worlds:
    """Runs worlds one after the other. The process they are forked from is started at the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, accelerate: str, config: Path, log: Path, *flags: str, processes: int = 2, **more: Any) -> list[int]:
        """The exit codes of the processes of one world; its output goes into `log`, which begins anew.

        Args:
            more: see world_runs, such as `stop_at`.
        """
        words = ["--config", str(config), *flags]
        log.unlink(missing_ok=True)
        return self.attempt({"accelerate": accelerate, "processes": processes, "flags": words, "log": str(log), **more})

    def run_alone(self, module: str, flags: Sequence[Path | str], log: Path) -> str:
        """The output of a module that ends well, in a process that no launcher has started."""
        codes, said = self.run_module("cpu_single", module, flags, log, processes=1, alone=True)
        assert codes == [0], said[-6000:]
        return said

    def run_module(
        self, accelerate: str, module: str, flags: Sequence[Path | str], log: Path, **more: Any
    ) -> tuple[list[int], str]:
        """Exit codes and output of a module whose `main` runs in the place of train.sft's."""
        log.unlink(missing_ok=True)
        words = {"flags": [*map(str, flags)], "log": str(log), "processes": 2}
        codes = self.attempt({"accelerate": accelerate, "module": module, **words, **more})
        return codes, log.read_text()

    def attempt(self, attempt: dict[str, Any]) -> list[int]:
        """The exit codes of an attempt as world_runs takes it; its output is added to its log."""
        process, log = self._started(), Path(attempt["log"])
        assert process.stdin and process.stdout
        codes = None
        try:
            process.stdin.write(json.dumps(attempt) + "\n")
            process.stdin.flush()
            answer = next((line for line in process.stdout if line.startswith(CODES)), None)
            assert answer, f"the process of the worlds has ended: {log.read_text()[-3000:] if log.exists() else ''}"
            codes = json.loads(answer.removeprefix(CODES))
        finally:
            if codes is None:  # also at a test's time limit: what runs must not answer the next attempt
                self.close()
        return codes

    def train(self, accelerate: str, config: Path, log: Path, *flags: str, **more: Any) -> str:
        """The output of a world that ends well."""
        codes = self.run(accelerate, config, log, *flags, **more)
        output = log.read_text()
        assert set(codes) == {0}, output[-6000:]
        return output

    def close(self) -> None:
        """End the process they are forked from."""
        if self._process:
            kill(self._process)
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.world_runs", "--serve"],
                cwd=ROOT,
                env=environment(PYTHONPATH=str(ROOT)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        return self._process
