"""The report's drawings: inline SVG for the shapes, percentages at which HTML places the words.

The words are HTML, not SVG or pixels: they keep their size on a phone, and the browser's fonts draw Korean, so that no
font has to be found when the report is made. It also spares a plotting library: all that is drawn is bars and one line.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

WIDTH, HEIGHT = 1000, 300  # of the drawing's own units; it is stretched to the page
TICKS = 5


def histogram_chart(counts: list[int], edges: list[int], density: list[float]) -> dict[str, Any]:
    """Bars and a density line.

    Args:
        counts: documents per bin.
        edges: one more than counts; equally wide bins.
        density: per token, at equally spaced lengths from the first edge to the last; drawn on the bars' scale.

    Returns:
        bars: x, y, width, height and title each. line: SVG path. ticks: (percent from the left, label). top: the share
        of documents that the chart's height stands for.
    """
    total = max(sum(counts), 1)
    bin_width = edges[1] - edges[0]
    values = [d * bin_width for d in density]
    top = max(max(counts) / total, *values) * 1.04 or 1.0
    step = WIDTH / len(counts)
    bars = []
    for i, count in enumerate(counts):
        height = count / total / top * HEIGHT
        last = i == len(counts) - 1
        span = f"more than {edges[i]:,}" if last else f"{edges[i] + 1:,} to {edges[i + 1]:,}"
        title = f"{span} tokens: {count:,} documents ({count / total:.1%})"
        bars.append({"x": _n(i * step), "y": _n(HEIGHT - height), "w": _n(step), "h": _n(height), "title": title})
    across = np.linspace(0, WIDTH, len(values))
    points = [f"{_n(x)} {_n(HEIGHT - v / top * HEIGHT)}" for x, v in zip(across, values, strict=True)]
    return {"bars": bars, "line": "M" + "L".join(points), "ticks": _ticks(edges), "top": max(counts) / total}


def _ticks(edges: list[int]) -> list[tuple[float, str]]:
    """About TICKS round lengths from 0 on; the right end of the axis is kept for the word that all longer ones get."""
    longest = edges[-1]
    magnitude = 10 ** math.floor(math.log10(max(longest / TICKS, 1)))
    every = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude * TICKS >= longest)
    return [(round(100 * at / longest, 3), f"{at:,}") for at in range(0, math.ceil(0.8 * longest), every)]


def range_chart(numbers: dict[str, Any], longest: int) -> dict[str, float]:
    """Where median and the spread from shortest to p99 lie, in percent of a logarithmic axis from 1 to longest."""

    def place(length: float) -> float:
        return round(100 * float(np.log(max(length, 1))) / float(np.log(max(longest, 2))), 2)

    low, high = place(numbers["min"]), place(numbers["p99"])
    return {"left": low, "width": max(high - low, 1.0), "median": place(numbers["median"])}


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
