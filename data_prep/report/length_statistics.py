"""Statistics of document lengths, computed from the number of documents of each length: exact, at a fixed cost.

Lengths are at most seq_len, so their counts hold all there is to know: every percentile, the density, and what padding
would have cost, without sampling.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

PERCENTILES = (90, 95, 99)
BINS = 50
PADDED_BATCH_SIZES = (4, 16)  # documents per batch, for comparison with padding


def length_counts(lengths: np.ndarray, seq_len: int, copies: np.ndarray | None = None) -> np.ndarray:
    """(seq_len + 1,) int64: how many uses of documents have each length.

    Args:
        lengths: (documents,) integers from 0 to seq_len.
        copies: (documents,) how often each is used; once if not given.
    """
    if copies is None:
        return np.bincount(lengths, minlength=seq_len + 1)
    return np.bincount(lengths, weights=copies, minlength=seq_len + 1).astype(np.int64)  # exact below 2**53


def describe(counts: np.ndarray) -> dict[str, Any]:
    """rows, tokens, mean, median, min, max, std (of the population), p90, p95, p99. Only rows and tokens if empty.

    Percentiles are interpolated between neighbours, as numpy's are.
    """
    rows = int(counts.sum())
    values = np.arange(counts.size, dtype=np.float64)
    tokens = int((counts * np.arange(counts.size, dtype=np.int64)).sum())
    if rows == 0:
        return {"rows": 0, "tokens": 0}
    present = np.flatnonzero(counts)
    mean = tokens / rows
    variance = float((counts * (values - mean) ** 2).sum()) / rows
    return {
        "rows": rows,
        "tokens": tokens,
        "mean": round(mean, 2),
        "median": percentile(counts, 50),
        "min": int(present[0]),
        "max": int(present[-1]),
        "std": round(math.sqrt(variance), 2),
        **{f"p{p}": percentile(counts, p) for p in PERCENTILES},
    }


def percentile(counts: np.ndarray, percent: float) -> float:
    """The length below which `percent` of the uses lie, linear between the two nearest."""
    upto = np.cumsum(counts)
    position = (int(upto[-1]) - 1) * percent / 100
    below = math.floor(position)
    low, high = (int(np.searchsorted(upto, index, side="right")) for index in (below, math.ceil(position)))
    return round(low + (high - low) * (position - below), 2)


def histogram_edges(counts: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(at most bins + 1,) int64: bins of equal whole width from 0 to the 99th percentile, rounded up; the last bin is
    meant to hold the rest as well. Lengths have a long tail that would press all else against the axis."""
    top = max(percentile(counts, 99), 1.0)
    width = _round_up(math.ceil(top / bins))
    return np.arange(0, math.ceil(top / width) + 1, dtype=np.int64) * width


def _round_up(width: int) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 25, 30, 40, ... so that the axis has readable numbers."""
    magnitude = 1
    while width > 8 * magnitude:
        magnitude *= 10
    steps = (1, 2, 3, 4, 5, 6, 8) if magnitude == 1 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    return int(next(step * magnitude for step in steps if width <= step * magnitude))


def histogram(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(edges - 1,) int64: uses with edges[i] < length <= edges[i + 1]; all beyond the last edge are in the last bin."""
    upto = np.cumsum(counts)
    upto_edge = upto[np.minimum(edges, counts.size - 1)]
    # The first bin begins at nothing, the last one ends at everything.
    upto_edge[0], upto_edge[-1] = 0, upto[-1]
    return np.diff(upto_edge)


def density(counts: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(points,) float64: Gaussian kernel density of the lengths at these lengths, per token; it integrates to 1.

    Bandwidth by Silverman's rule (0.9 min(std, IQR / 1.34) n^-1/5, at least one token). The mass that a kernel puts
    beyond the shortest or the longest possible length is reflected, as there are no lengths there.
    """
    rows = int(counts.sum())
    if rows == 0:
        return np.zeros(points.size)
    bandwidth = _bandwidth(counts, rows)
    reach = math.ceil(4 * bandwidth)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / bandwidth) ** 2)
    padded = np.zeros(2 ** math.ceil(math.log2(counts.size + 2 * kernel.size)))
    padded[: counts.size] = counts
    spectrum = np.fft.rfft(padded) * np.fft.rfft(kernel / kernel.sum(), padded.size)
    smooth = _reflect(np.fft.irfft(spectrum, padded.size), reach, counts.size) / rows
    return np.interp(points, np.arange(counts.size), np.maximum(smooth, 0.0))  # the transform leaves -1e-20


def _bandwidth(counts: np.ndarray, rows: int) -> float:
    lengths = np.arange(counts.size)
    mean = float((counts * lengths).sum()) / rows
    std = math.sqrt(float((counts * (lengths - mean) ** 2).sum()) / rows)
    iqr = (percentile(counts, 75) - percentile(counts, 25)) / 1.34
    return max(0.9 * (min(std, iqr) if iqr else std) * rows**-0.2, 1.0)


def _reflect(full: np.ndarray, reach: int, size: int) -> np.ndarray:
    """The convolution's middle, `size` long, with what lies `reach` before and after it folded back."""
    result = full[reach : reach + size].copy()
    fold = min(reach, size)
    result[:fold] += full[reach - fold : reach][::-1]
    result[size - fold :] += full[reach + size : reach + size + fold][::-1]
    return result


def expected_longest(counts: np.ndarray, batch_size: int) -> float:
    """The mean length of the longest of `batch_size` documents drawn at random without putting back; exact.

    P(longest <= l) = n_l (n_l - 1) ... / n (n - 1) ... where n_l documents are at most l long; the mean is the sum over
    l of P(longest > l).
    """
    upto = np.cumsum(counts).astype(np.float64)
    total = upto[-1]
    drawn = np.ones(counts.size)
    for i in range(min(batch_size, int(total))):
        drawn *= np.maximum(upto - i, 0) / (total - i)
    return float((1 - drawn).sum())


def padding(counts: np.ndarray, packed_rows: int, seq_len: int) -> dict[str, Any]:
    """What packing saves against one document per row, counted in token positions that a model would compute.

    A packed row counts as seq_len positions, though training without padding computes only its tokens.

    Args:
        counts: from length_counts, of one split.
        packed_rows: how many rows the split was packed into.
    """
    rows, tokens = int(counts.sum()), int((counts * np.arange(counts.size, dtype=np.int64)).sum())
    if not rows or not packed_rows:
        return {}
    packed = packed_rows * seq_len
    result = {
        "packed_positions": packed,
        "efficiency": round(tokens / packed, 6),
        "documents_per_row": round(rows / packed_rows, 2),
        "padded_to_seq_len": _against(rows * seq_len, packed, tokens),
    }
    for size in PADDED_BATCH_SIZES:
        padded = round(rows * expected_longest(counts, size))
        result[f"padded_to_longest_of_{size}"] = _against(padded, packed, tokens)
    return result


def _against(padded: int, packed: int, tokens: int) -> dict[str, Any]:
    return {
        "positions": padded,
        "padding_share": round(1 - tokens / padded, 4),  # of the padded batches
        "saved_share": round(1 - packed / padded, 4),  # by packing; below 0 where rows are emptier than batches
    }


def shares(codes: np.ndarray, weights: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """name -> share of the weights, largest first, none that is 0.

    Args:
        codes: (documents,) indices into names.
        weights: (documents,) numbers, such as copies, or copies times trained tokens.
    """
    sums = np.bincount(codes, weights=weights, minlength=len(names))
    total = sums.sum() or 1.0
    return {names[i]: round(float(sums[i] / total), 6) for i in np.argsort(-sums, kind="stable") if sums[i]}
