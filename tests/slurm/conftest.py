"""The folder in which the scripts of slurm/ run against stand-ins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.slurm_stand_ins import Project


@pytest.fixture
def project(tmp_path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.stop()
