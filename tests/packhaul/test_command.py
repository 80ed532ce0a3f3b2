"""The command `packhaul`: its names, what they are called in messages, exit codes, light imports."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib

import pytest

from packhaul import command
from packhaul.command import COMMANDS, main
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def own_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["packhaul"])  # put back afterwards


def test_the_entry_point_resolves():
    (target,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    module, _, function = target.partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_help_lists_every_command_once(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(entry.line)]


def test_without_a_command_the_help_is_shown_and_refused(capsys):
    assert main([]) == 2
    assert "usage: packhaul COMMAND" in capsys.readouterr().out


def test_help_imports_almost_nothing():
    code = "import sys; from packhaul.command import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {"packhaul", "packhaul.command", "data_prep", "data_prep.program_name"}
    loaded = set(eval(done.stdout.splitlines()[-1]))
    assert {name for name in loaded if name.split(".")[0] in ("packhaul", "data_prep", "train")} == ours
    assert not loaded & {"numpy", "torch", "pydantic", "yaml", "pyarrow", "argparse"}


def test_modules_of_the_current_folder_are_found_behind_the_installed_ones(tmp_path):
    """As by the installed script, whose own folder is first on Python's path."""
    (tmp_path / "my_rows.py").write_text("def clean(row): return row")
    (tmp_path / "train.py").write_text("raise SystemExit(9)")
    code = (
        "import sys; sys.path = [p for p in sys.path if p]; from packhaul.command import main; main(['diff', 'a', 'b'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import my_rows, train.config; print(my_rows.clean(7))"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "7\n", done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("packhaul ")


@pytest.mark.parametrize(
    ("name", "said"),
    [("prepair", "did you mean 'prepare'?"), ("qqq", "commands: prepare, inspect"), ("", "commands: ")],
)
def test_an_unknown_command_suggests_the_nearest(name, said, capsys):
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"packhaul: error: unknown command {name!r}") and said in error


# Of each command: words that it refuses.
WRONG = {
    "prepare": ["--recipe", "absent.yaml", "--output", "x"],
    "inspect": ["absent"],
    "preflight": ["--num_processes", "none"],
    "train": ["--num_processes", "2"],
    "checkpoint": ["list", "absent"],
    "export": ["--checkpoint", "absent", "--output", "x"],
    "generate": ["--model", "absent", "--prompt", "x"],
    "evaluate": ["--export", "absent/export", "--tasks", "x"],
    "add-tokens": ["--model", "absent", "--data", "absent", "--output", "x"],
    "check-nodes": ["--nope"],
    "report": ["absent"],
    "score": ["absent", "absent"],
    "trace": ["absent", "--step", "1"],
    "schema": ["nothing"],
    "diff": ["absent", "absent"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_refusal_has_the_command_s_name_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _code(name, WRONG[name]) == 2
    error = capsys.readouterr().err
    assert f"packhaul {name}: error: " in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def _code(name: str, words: list[str]) -> object:
    try:
        return main([name, *words])
    except SystemExit as end:
        return end.code


def test_every_command_is_tried():
    assert WRONG.keys() | {"submit"} == COMMANDS.keys()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "submit"])
def test_usage_has_the_command_s_name(name, capsys):
    assert _code(name, ["--help"]) in (0, None)
    assert f"usage: packhaul {name}" in capsys.readouterr().out


def test_modules_keep_their_own_names(monkeypatch, capsys):
    from data_prep import prepare

    monkeypatch.setattr(sys, "argv", ["/x/data_prep/prepare.py"])
    assert prepare.main(["--recipe", "absent.yaml", "--output", "x"]) == 2
    assert capsys.readouterr().err.startswith("prepare: error: ")


def test_a_reader_that_leaves_is_no_error():
    line = f"{sys.executable} -m packhaul --help | head -n 1 > /dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")


def test_a_closed_pipe_ends_with_141():
    code = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
    code += "from packhaul.command import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.prepare.main_of_process", stop)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err == "packhaul prepare: stopped by Ctrl-C\n"


def test_modules_of_commands_are_named_as_they_are():
    for entry in command.COMMANDS.values():
        assert callable(getattr(importlib.import_module(entry.module), entry.main))
