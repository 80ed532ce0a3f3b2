"""The world that a launcher has made is the one that was asked for."""

from __future__ import annotations

from train.config.run_config import RunConfig


def check_world_size(world_size: int, config: RunConfig) -> None:
    """Refuse a world that is not what was asked for: a launcher may start several worlds of one, and exit with 0."""
    wanted = config.own.expected_world_size
    if wanted is not None and world_size != wanted:
        raise ValueError(
            f"expected_world_size is {wanted}, but this world has {world_size} process(es): the launch "
            "configuration does not start what you asked for (see configs/accelerate and the num_processes it gives)"
        )


def check_one_gpu(visible: int) -> None:
    """Refuse one process with several GPUs: the model would be spread over them, one at work at a time."""
    if visible > 1:
        raise ValueError(
            f"expected one GPU for each process, this process sees {visible}: start as many processes (such as "
            "configs/accelerate/zero3.yaml does), or show it one: CUDA_VISIBLE_DEVICES=0"
        )
