"""RawRow: one row as it was found, with its number and place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_prep.conversation import BadRow


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was found."""

    number: int  # 0-based within the source; modulo SIBLING where several rows are made of one
    where: str  # "data/x.jsonl:17" (line; also CSV), "data/x.json[16]" (number in its file) or "hub/id[16]"
    # A BadRow where it could not be read: not_json, repeated_key, not_an_object, not_csv, wrong_columns, nul_byte,
    # not_utf8, not_decodable (another encoding), not_readable (a Parquet or Arrow cell), too_large; or reshaped:
    # left_out, transform_error.
    value: dict[str, Any] | BadRow
