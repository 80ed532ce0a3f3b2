"""Files that are whole or not there: errors name them, and nothing is left of one that fails."""

from __future__ import annotations

import errno
import os

import pytest

from data_prep.atomic_files import naming, reading, write_atomically, written_atomically


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_names_the_file_and_leaves_nothing(call, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, fails)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*/x.json'"):
        write_atomically(tmp_path / "x.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_a_write_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), written_atomically(tmp_path / "nowhere/x"):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "Input/output error"), "[Errno 5] Input/output error: 'a.bin'"),
        (OSError(errno.EIO, "Input/output error", "other"), "[Errno 5] Input/output error: 'other'"),
        (OSError("Not a gzipped file"), "a.bin: Not a gzipped file"),
        (OSError("a.bin: no such thing"), "a.bin: no such thing"),
    ],
)
def test_errors_of_reading_name_the_file(error, said):
    with pytest.raises(OSError) as raised, naming("a.bin"):
        raise error
    assert str(raised.value) == said


@pytest.mark.parametrize("error", [ValueError("x"), EOFError("x"), KeyError("x"), OSError("x")])
def test_what_is_not_what_we_wrote_is_damaged(error, tmp_path):
    with (
        pytest.raises(ValueError, match=r"a.bin is damaged \('?x'?\): delete it"),
        reading(tmp_path / "a.bin", "delete it"),
    ):
        raise error
    with pytest.raises(OSError, match=r"Errno 5.*a.bin"), reading(tmp_path / "a.bin", "delete it"):
        raise OSError(errno.EIO, "Input/output error")
