"""Curves as inline SVG: shapes in the drawing's own units, words as HTML beside them, as in the data report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 1000, 300  # stretched to the page
MOST_POINTS = 400  # of a line: more would not be seen
Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    points: Points  # (step, value)
    colour: int = 1  # 1 to 8
    dots: bool = False  # single evaluations instead of a line
    dashed: bool = False


def chart(
    title: str, curves: list[Curve], last_step: int, *, zero: bool = False, marks: Sequence[int] = ()
) -> dict[str, Any] | None:
    """What the template draws; None without a point.

    Args:
        last_step: the right end of the axis.
        zero: whether the axis begins at 0.
        marks: steps that get a line from top to bottom.

    Returns:
        title; curves: name, colour, path, band around it, dots, last value; ticks: (percent from the left, label); low
        and high, the values at the bottom and the top; marks: (x, step).
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    values = [value for curve in curves for _, value in curve.points]
    low, high = (0.0 if zero else min(values)), max(values)
    space = (high - low or abs(high) or 1.0) * 0.05
    low, high = (0.0 if zero else low - space), high + space

    def place(step: int, value: float) -> tuple[str, str]:
        return _number(step / max(last_step, 1) * WIDTH), _number(HEIGHT - (value - low) / (high - low) * HEIGHT)

    drawn = [_drawn(curve, place) for curve in curves]
    lines = [(_number(step / max(last_step, 1) * WIDTH), step) for step in marks if step <= last_step]
    return {"title": title, "curves": drawn, "ticks": ticks(last_step), "low": low, "high": high, "marks": lines}


def _drawn(curve: Curve, place: Callable[[int, float], tuple[str, str]]) -> dict[str, Any]:
    means, band = thinned(curve.points)
    places = [place(step, value) for step, value in means]
    titles = [f"{curve.name}, step {step:,}: {value:.4g}" for step, value in means]
    dots = [{"x": x, "y": y, "title": said} for (x, y), said in zip(places, titles, strict=True)]
    around = [place(step, high) for step, _, high in band] + [place(step, low) for step, low, _ in reversed(band)]
    return {
        "name": curve.name,
        "colour": curve.colour,
        "dashed": curve.dashed,
        "single": curve.dots,
        "last": curve.points[-1][1],
        "path": _path(places),
        "band": f"{_path(around)}Z" if band else "",
        "dots": dots if curve.dots or len(places) == 1 else [],
    }


def _path(places: list[tuple[str, str]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def thinned(points: Points) -> tuple[Points, list[tuple[int, float, float]]]:
    """At most MOST_POINTS means of neighbours, with the last step of each group; and (step, lowest, highest) of each
    group, so that no peak is lost. Few points are left as they are, without these."""
    if len(points) <= MOST_POINTS:
        return points, []
    ends = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    groups = [points[first:end] for first, end in itertools.pairwise(ends)]
    values = [[value for _, value in group] for group in groups]
    steps = [group[-1][0] for group in groups]
    means = [(step, sum(of_group) / len(of_group)) for step, of_group in zip(steps, values, strict=True)]
    return means, [(step, min(found), max(found)) for step, found in zip(steps, values, strict=True)]


def ticks(last: int) -> list[tuple[float, str]]:
    """About five round steps from 0 on."""
    if last < 1:
        return [(0.0, "0")]
    magnitude = 10 ** math.floor(math.log10(max(last / 5, 1)))
    every = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude * 5 >= last)
    return [(round(100 * at / last, 2), f"{at:,}") for at in range(0, last + 1, every) if at <= 0.92 * last]


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
