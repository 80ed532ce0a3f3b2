"""train.checkpoint.prepared_folder: what a launch with more or fewer ranks finds in a folder made of a checkpoint."""

from __future__ import annotations

import pytest

from train.checkpoint import folders
from train.checkpoint.prepared_folder import link


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (2, 3, {"rng_state_0.pth": "0", "rng_state_1.pth": "1", "rng_state_2.pth": "0"}),
        (2, 1, {"rng_state.pth": "0"}),
        (1, 2, {"rng_state_0.pth": "0", "rng_state_1.pth": "0"}),
    ],
)
def test_each_rank_finds_a_random_state_and_all_the_states(before, now, found, tmp_path):
    checkpoint, folder = tmp_path / "checkpoint-3", tmp_path / "made"
    (checkpoint / "optimizer_0").mkdir(parents=True)
    (checkpoint / "optimizer_0" / "part").write_text("a part")
    (checkpoint / "trainer_state.json").write_text("{}")
    for rank in range(before):
        name = f"rng_state_{rank}.pth" if before > 1 else "rng_state.pth"
        (checkpoint / name).write_text(str(rank))
    folders.publish(checkpoint, step=3, world_size=before, extra={})
    folder.mkdir()
    link(folders.read(checkpoint), folder, now)
    assert {file.name: file.read_text() for file in folder.glob("rng_state*")} == found
    assert (folder / "optimizer_0" / "part").read_text() == "a part" and (folder / "trainer_state.json").exists()
