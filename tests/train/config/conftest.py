"""A run configuration in a file."""

from __future__ import annotations

import pytest


@pytest.fixture
def yaml_file(tmp_path):
    """Write a run config: the required options on three lines, then the text."""

    def write(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(f"data: shards\noutput_dir: run\nmodel_name_or_path: model\n{text}")
        return str(path)

    return write
