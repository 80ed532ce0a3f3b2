"""A wheel holds every module and data file, and its entry points answer without the repository."""

from __future__ import annotations

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from packhaul.command import COMMANDS
from tests.conftest import ROOT

PACKAGES = ("data_prep", "train", "packhaul")
ENTRIES = (
    *("data_prep.prepare", "data_prep.inspect_shards", "data_prep.diff_shards"),
    *("train.sft", "train.preflight", "train.export", "train.generate", "train.add_tokens", "train.checkpoint"),
    "train.check_nodes",
    "train.trace",
    "packhaul",
)
# As `python -m MODULE`, without an editable install, which would lend the wheel what it lacks.
RUN_MODULE = """
import runpy, sys
sys.meta_path[:] = [f for f in sys.meta_path if not str(getattr(f, "__module__", "")).startswith("__editable__")]
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """What a wheel installs, built from a copy of the repository."""
    _skip_without_build_tools()
    copy, built, folder = (tmp_path_factory.mktemp(name) for name in ("copy", "built", "unpacked"))
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", built, copy]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def _skip_without_build_tools() -> None:
    try:
        found = version("setuptools")
        version("pip")
    except PackageNotFoundError as missing:
        pytest.skip(f"needs pip and setuptools to build a wheel: {missing}")
    if int(found.split(".")[0]) < 77:
        pytest.skip(f"needs setuptools >= 77 to build a wheel, found {found}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_every_file(unpacked, package):
    files = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file.parts}
    assert files and files == {path.relative_to(unpacked) for path in (unpacked / package).rglob("*") if path.is_file()}


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_points_answer_from_an_empty_folder(unpacked, tmp_path, entry):
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN_MODULE, entry, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"usage: {'' if entry == 'packhaul' else 'python -m '}{entry}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_wheel_installs_the_command(unpacked):
    (file,) = unpacked.glob("*.dist-info/entry_points.txt")
    scripts = configparser.ConfigParser()
    scripts.read_string(file.read_text(encoding="utf-8"))
    module, _, function = scripts["console_scripts"]["packhaul"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_from_an_empty_folder(unpacked, tmp_path, name):
    if name == "submit":
        pytest.skip("needs slurm/submit.sh, which belongs to the repository")
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN_MODULE, "packhaul", name, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"usage: packhaul {name}" in done.stdout
    assert not list(tmp_path.iterdir())
