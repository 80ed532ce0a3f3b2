"""Run configurations of flags alone: those that load, and the message of those that do not."""

from __future__ import annotations

import pytest

from train.config.run_config import RunConfig, load_run_config

REQUIRED = ["--data", "shards", "--output_dir", "run", "--model_name_or_path", "model"]


def load(*flags: str) -> RunConfig:
    """With the required options."""
    return load_run_config([*REQUIRED, *flags])


def refused(*flags: str) -> str:
    """Why they do not load."""
    with pytest.raises(ValueError) as error:
        load(*flags)
    return str(error.value)
