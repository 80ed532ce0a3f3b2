"""Orders and equal keys of many documents' hashes, in a few bytes for each document.

numpy's argsort and unique(return_inverse=True) hold three 8-byte arrays and take twice as long. Here a key gives up its
lowest bits for its position, so that one array is sorted in place. Keys that differ in those bits only are put in
order afterwards; for hashes they are few.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 20  # keys looked at at once


def index_type(size: int) -> type[np.signedinteger]:
    """The smallest type that holds the positions 0 to size - 1 and -1."""
    return np.int32 if size < 2**31 else np.int64


def argsort_keys(keys: np.ndarray) -> np.ndarray:
    """(keys,) int32 or int64: np.argsort(keys, kind="stable") of uint64 keys."""
    packed, positions, is_shared = _sorted(keys)
    order = np.bitwise_and(packed, positions, out=packed).astype(index_type(keys.size))
    places = np.flatnonzero(is_shared)
    members = order[places]  # in the order of their high bits, then of their positions
    order[places] = members[np.argsort(keys[members], kind="stable")]
    return order


def argsort_numbers(values: np.ndarray, most: int) -> np.ndarray:
    """(values,) int32 or int64: np.argsort(values, kind="stable") of integers from 0 to `most`."""
    if most < 2**16:  # which numpy sorts by their digits
        return np.argsort(values.astype(np.uint16), kind="stable").astype(index_type(values.size))
    bits = values.size.bit_length()
    if most.bit_length() + bits > 64:
        return np.argsort(values, kind="stable")
    packed = values.astype(np.uint64)
    packed <<= np.uint64(bits)
    for start in range(0, values.size, _CHUNK):
        end = min(start + _CHUNK, values.size)
        packed[start:end] |= np.arange(start, end, dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << bits) - 1)
    return packed.astype(index_type(values.size))


def first_of_equal(keys: np.ndarray) -> np.ndarray:
    """(keys,) int32 or int64: for each of the uint64 keys, the first position that has it."""
    packed, positions, is_shared = _sorted(keys)
    members = np.sort((packed[is_shared] & positions).astype(index_type(keys.size)))
    del packed
    first = np.arange(keys.size, dtype=index_type(keys.size))
    _, first_of_members, inverse = np.unique(keys[members], return_index=True, return_inverse=True)
    first[members] = members[first_of_members[inverse]]
    return first


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.uint64, np.ndarray]:
    """The keys, sorted, with the position in the place of their lowest bits; the mask of these bits; where a neighbour
    has the same high bits."""
    positions = np.uint64((1 << max(1, (keys.size - 1).bit_length())) - 1)
    packed = keys & ~positions
    for start in range(0, keys.size, _CHUNK):
        end = min(start + _CHUNK, keys.size)
        packed[start:end] |= np.arange(start, end, dtype=np.uint64)
    packed.sort()
    is_shared = np.zeros(keys.size, dtype=bool)
    for start in range(0, keys.size - 1, _CHUNK):
        window = packed[start : start + _CHUNK + 1]
        is_same = (window[1:] ^ window[:-1]) <= positions
        is_shared[start + 1 : start + window.size] |= is_same
        is_shared[start : start + window.size - 1] |= is_same
    return packed, positions, is_shared
