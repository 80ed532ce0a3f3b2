"""The state of a rank that waits in a step, for tests of hangs."""

from __future__ import annotations

import time

from train.run.rank_states import RankState

SINCE = time.mktime((2026, 3, 1, 14, 2, 11, 0, 0, -1))


def state(rank: int, **changes) -> RankState:
    values = {"host": f"gpu0{rank // 2}", "phase": "step", "part": "forward", "step": 1204, "position": 900}
    values |= {"since": SINCE, "waited": 640.0, "late": True, "waits": True, "where": "torch.all_reduce (x.py:1)"}
    return RankState(rank=rank, process=1, beat=1, **{**values, **changes})
