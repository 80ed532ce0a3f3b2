"""The processes of a world, over gloo, as those of a training without GPUs."""

import datetime

import torch
import torch.distributed as dist


class World:
    """Joins the world.

    Attributes:
        rank, size: as torch says it.
    """

    def __init__(self) -> None:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=300))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def any(self, flag: bool, seconds: float) -> bool:
        """Whether it holds on any rank.

        Raises:
            RuntimeError: another process has ended, or does not answer for `seconds`.
        """
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, async_op=True).wait(datetime.timedelta(seconds=seconds))
        return bool(found.item())

    def close(self) -> None:
        """Leave it."""
        dist.destroy_process_group()
