"""Rows cut into parts: whether the launch can hold them, and what a rank then holds and sends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from data_prep.shards import Manifest
from train.checks.launch import Launch
from train.checks.model_files import model_file
from train.config.run_config import RunConfig
from train.model.sequence_limits import heads_of

_MIB = 2**20


def check_parts(config: RunConfig, processes: int | None) -> Iterator[str]:
    """Whether the ranks can be divided into groups.

    Args:
        processes: world size, if it is known.
    """
    ranks = config.own.sequence_parallel
    if processes is not None and processes % ranks:
        yield f"sequence_parallel: expected a number that divides the launch's {processes} process(es), found {ranks}"


def parts_notes(config: RunConfig, launch: Launch | None, processes: int | None) -> Iterator[str]:
    """Groups that reach over machines."""
    ranks, machines = config.own.sequence_parallel, launch.settings.get("num_machines", 1) if launch else 1
    if processes and machines > 1 and processes // machines % ranks:
        yield (
            f"sequence_parallel: groups of {ranks} ranks reach over machines of {processes // machines}: in each layer "
            "tokens are exchanged over the network between them"
        )


def parts_lines(config: RunConfig, manifest: Manifest) -> Iterator[str]:
    """The derived numbers for a person."""
    ranks = config.own.sequence_parallel
    if ranks == 1:
        return
    row = manifest["seq_len"] * config.value("per_device_train_batch_size")
    tokens = math.ceil(row / ranks)
    yield f"row parts    up to {row:,} tokens over {ranks} ranks: {tokens:,} each{_traffic(config, tokens, ranks)}"


def _traffic(config: RunConfig, tokens: int, ranks: int) -> str:
    """What a rank sends in a layer, where config.json is here: queries and outputs, keys and values."""
    path = model_file(config, "config.json")
    if path is None:
        return ""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # reported as a problem
        return ""
    settings |= settings.get("text_config") or {}
    heads, width = heads_of(settings), settings.get("head_dim")
    if heads is None or not (width or settings.get("hidden_size")):
        return ""
    width = width or settings["hidden_size"] // heads[0]
    elements = 2 * (heads[0] + math.lcm(heads[1], ranks)) * width * tokens
    size = elements * (2 if config.precision != "no" else 4) * (ranks - 1) / ranks
    return f"; a rank sends {size / _MIB:,.1f} MiB in each layer and pass"
