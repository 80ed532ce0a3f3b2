"""Who hangs: by the beats, by how far each rank is, by what its main thread does."""

from __future__ import annotations

import pytest

from tests.support.rank_states import SINCE, state
from train.run import culprit


def said(silent=(), missing=(), **changes) -> str:
    """The line of rank 0 in a world of four; `changes` by rank, such as rank2={...}."""
    states = {rank: state(rank, **changes.get(f"rank{rank}", {})) for rank in range(4)}
    states |= dict.fromkeys(missing)
    return culprit.line(culprit.find(states, list(silent)), states, states[0], SINCE + 640)


IN_STEP = "in step 1,204 (forward) since 14:02:11, 640 s; "


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"silent": [3], "rank2": {"position": 5}}, f"rank 3 on gpu01 hangs: {IN_STEP}{culprit.SILENT}"),
        ({"silent": [2, 3]}, f"ranks 2-3 on gpu01 hang: {IN_STEP}{culprit.SILENT}"),
        ({"silent": [1, 3]}, f"rank 1 on gpu00 hangs (and rank 3 elsewhere): {IN_STEP}{culprit.SILENT}"),
        (  # its last beat is older than the step that all others are in
            {"silent": [3], "rank3": {"position": 5, "step": 1203, "since": SINCE - 5, "part": "data"}},
            f"rank 3 on gpu01 hangs: {IN_STEP.replace(' (forward)', '')}{culprit.SILENT}",
        ),
        (
            {"silent": [3], "missing": [3]},
            f"rank 3 has not been heard of since the start, 640 s; {culprit.SILENT}",
        ),
        (
            {"rank1": {"position": 899, "part": "data", "where": "train.data (y.py:2)"}},
            "rank 1 on gpu00 hangs: in step 1,204 (data) since 14:02:11, 640 s; it is at train.data (y.py:2); "
            "others are in step 1,204 (forward) already",
        ),
        (
            {"rank3": {"waits": False, "where": "time.sleep (z.py:3)"}},
            f"rank 3 on gpu01 hangs: {IN_STEP}it is at time.sleep (z.py:3)",
        ),
        (
            {},
            "all ranks hang: in step 1,204 (forward) since 14:02:11, 640 s; none stands out, rank 0 is at "
            "torch.all_reduce (x.py:1): look at the network and the GPUs",
        ),
        (
            {"silent": [3], "rank3": {"phase": "save", "part": "", "position": 901}},
            f"rank 3 on gpu01 hangs: in the save after step 1,204 since 14:02:11, 640 s; {culprit.SILENT}",
        ),
    ],
)
def test_the_line_names_rank_host_phase_and_how_it_is_known(arguments, line):
    assert said(**arguments) == line


def test_a_process_alone_names_itself():
    alone = {0: state(0)}
    assert culprit.find(alone, []).ranks == [0]


def test_ranks_that_all_work_are_not_told_apart():
    states = {rank: state(rank, waits=False) for rank in range(3)}
    assert culprit.find(states, []).ranks == []
