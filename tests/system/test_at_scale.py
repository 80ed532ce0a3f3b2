"""The formulas of `tests/benchmarks/at_scale.py`."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.at_scale import GPU_HOURS, daly, derive

MEASURED = {"copy_gb_s": 4.0, "digest_gb_s": 2.0, "write_gb_s": 1.0, "bytes_per_parameter": 14.0, "file_calls": 1000}


@pytest.mark.parametrize(("cost", "mtbf"), [(1, 180_000), (300, 180_000), (20_000, 100_000)])
def test_the_interval_is_the_one_that_loses_least(cost, mtbf):
    """Against the exact expectation with exponential failures, over a grid."""
    expected = {seconds: math.expm1((seconds + cost) / mtbf) / seconds for seconds in range(1, mtbf, 7)}
    best = min(expected, key=expected.__getitem__)
    assert daly(cost, mtbf) == pytest.approx(best, rel=0.02, abs=7)


def test_what_follows_for_a_model():
    found = derive(MEASURED, gpus=1000, parameters=1e9, bandwidth=10)
    assert found["checkpoint_gb"] == 14 and found["states_gb_of_a_process"] == 0.012
    assert found["stall_seconds"] == pytest.approx(0.012 / 4 + 2 / 20)
    assert found["write_seconds"] == pytest.approx(2.012, rel=1e-2)  # the first process, not the file system
    assert derive(MEASURED, gpus=1000, parameters=1e9, bandwidth=0.1)["write_seconds"] == 140
    assert found["mtbf_hours"] == pytest.approx(GPU_HOURS / 1000, rel=1e-2)
    assert found["start_up_seconds_of_a_shared_environment"] == 10
    assert found["lost_background_percent"] < found["lost_at_once_percent"]
