"""Columns of list<int32> from numpy arrays, and back, without pandas.

pyarrow's own ways from and to numpy import pandas first, which takes half a second in each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def list_column(values: Sequence[np.ndarray]) -> pa.Array:
    """One or more (n,) integer arrays as a column of list<int32>."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([v.size for v in values], out=offsets[1:])
    numbers = np.concatenate(values).astype(np.int32, copy=False)
    items = pa.Array.from_buffers(pa.int32(), numbers.size, [None, pa.py_buffer(numbers)])
    return pa.Array.from_buffers(pa.list_(pa.int32()), len(values), [None, pa.py_buffer(offsets)], children=[items])


def int32_view(array: pa.Array) -> np.ndarray:
    """(n,) int32: an array of integers without nulls, in place."""
    import numpy as np

    data = array.buffers()[1]
    return np.frombuffer(data or b"", dtype=np.int32, count=len(array), offset=4 * array.offset if data else 0)
