"""train.loop.data_position: the same batches as accelerate's own skipping, without its loop."""

from __future__ import annotations

import accelerate
import pytest
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import DataLoader, SequentialSampler

from train.loop.data_position import skip_batches
from train.loop.row_order import From


def loader(rows: int, batch: int, world: int, rank: int, shuffled: bool):
    dataset = list(range(rows))
    sampler = SeedableRandomSampler(dataset, data_seed=3) if shuffled else SequentialSampler(dataset)
    plain = DataLoader(dataset, batch_size=batch, sampler=sampler)
    return prepare_data_loader(plain, num_processes=world, process_index=rank, put_on_device=False)


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize(("batch", "world"), [(1, 1), (3, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("skipped", [0, 1, 5])
def test_the_batches_are_those_of_accelerate(batch, world, skipped, shuffled):
    for rank in range(world):
        for epoch in (0, 2):
            found = []
            for skip in (accelerate.skip_first_batches, skip_batches):
                resumed = skip(loader(48, batch, world, rank, shuffled), skipped)
                resumed.set_epoch(epoch)
                found.append([b.tolist() for b in resumed])
                assert len(resumed) == 48 // batch // world - skipped
            assert found[0] == found[1] and len(found[0]) == 48 // batch // world - skipped


def test_no_batch_is_made_to_be_thrown_away(monkeypatch):
    resumed = skip_batches(loader(1000, 2, 4, 1, True), 100)
    sampler = resumed.batch_sampler.batch_sampler.batch_sampler.sampler
    assert isinstance(sampler, From) and sampler.start == 800
    assert resumed.batch_sampler.skip_batches == 0
    assert sum(1 for _ in resumed) == 25
