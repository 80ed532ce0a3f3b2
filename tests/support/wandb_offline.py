"""Read what an offline W&B run recorded: its `.wandb` file, a LevelDB log of protobuf records.

Framing: blocks of 32 KiB; each record has a header of CRC-32, length and type (whole, first, middle, last), little
endian (LevelDB's log format). A killed process leaves a torn tail, which is ignored.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


def read_run(path: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Run id, config and logged rows of one offline run."""
    from wandb.proto import wandb_internal_pb2

    run_id, config, rows = "", {}, []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id = record.run.run_id
            config.update(_values(record.run.config.update))
        elif kind == "config":
            config.update(_values(record.config.update))
        elif kind == "history":
            rows.append(_values(record.history.item))
    return run_id, config, rows


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    position, parts = _FILE_HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if left < _HEADER or kind == 0:  # the rest of the block is padding
            position += left
            continue
        start = position + _HEADER
        if start + length > len(data):
            return
        position = start + length
        parts = data[start:position] if kind in (_WHOLE, _FIRST) else parts + data[start:position]
        if kind in (_WHOLE, _LAST):
            yield parts
