"""train.loop.row_order: the rows of a step are those that the ranks of any world are dealt."""

from __future__ import annotations

import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from train.loop.data_position import skip_batches
from train.loop.row_order import RowOrder

ROWS, SEED = 21, 5  # 21 rows: filler rows in the last step of an epoch


def ranks_rows(order: RowOrder, world: int, batch: int, epoch: int, skipped: int = 0) -> list[list[int]]:
    """By step of the epoch, the rows that all ranks take, as accelerate deals them."""
    numbers = list(range(order.steps_per_epoch * order.rows_per_step))
    accumulation = order.rows_per_step // (world * batch)
    steps: list[list[int]] = [[] for _ in range(order.steps_per_epoch)]
    for rank in range(world):
        sampler = RandomSampler(numbers) if order.strategy == "random" else SequentialSampler(numbers)
        plain = DataLoader(numbers, batch_size=batch, sampler=sampler)
        how = {"use_seedable_sampler": True, "data_seed": SEED, "put_on_device": False}
        loader = prepare_data_loader(plain, num_processes=world, process_index=rank, **how)
        loader = skip_batches(loader, skipped * accumulation) if skipped else loader
        loader.set_epoch(epoch)
        for number, rows in enumerate(loader):
            steps[skipped + number // accumulation] += rows.tolist()
    return steps


@pytest.mark.parametrize("strategy", ["random", "sequential"])
@pytest.mark.parametrize(("world", "batch"), [(1, 4), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("skipped", [0, 2])
def test_any_world_takes_the_same_rows(world, batch, skipped, strategy):
    order = RowOrder(ROWS, 4, SEED, strategy)
    assert order.steps_per_epoch == 6
    for epoch in (0, 3):
        dealt = ranks_rows(order, world, batch, epoch, skipped)
        for in_epoch in range(skipped, order.steps_per_epoch):
            found, rows = order.of_step(epoch * order.steps_per_epoch + in_epoch + 1)
            assert found == epoch and sorted(rows) == sorted(dealt[in_epoch])


def test_epochs_differ_and_have_every_row_once():
    order = RowOrder(ROWS, 4, SEED, "random")
    assert order.of_epoch(0) != order.of_epoch(1)
    assert sorted(order.of_epoch(1)) == list(range(24))
    assert order.of_epoch(1)[8:] == order.of_epoch(1, 8)
