"""The histogram's bars and line stand where the numbers are."""

from __future__ import annotations

import pytest

from data_prep.report.charts import HEIGHT, WIDTH, histogram_chart


def test_chart_bars_stand_on_the_axis_and_the_line_is_on_their_scale():
    chart = histogram_chart([2, 6, 2], [0, 10, 20, 30], [0.0, 0.06, 0.06, 0.0])  # 0.06 per token: 60 % in a bin
    heights = [float(bar["h"]) for bar in chart["bars"]]
    assert [float(bar["y"]) + float(bar["h"]) for bar in chart["bars"]] == [HEIGHT] * 3
    assert heights[0] == heights[2] == pytest.approx(heights[1] / 3, abs=0.1) and chart["top"] == 0.6
    points = [tuple(map(float, point.split())) for point in chart["line"][1:].split("L")]
    assert points[0] == (0, HEIGHT) and points[1][1] == float(chart["bars"][1]["y"]) and points[-1][0] == WIDTH
    assert chart["ticks"][0] == (0, "0") and "more than 20 tokens: 2 documents" in chart["bars"][2]["title"]
