"""train.checkpoint.sharded_save: DCP's save in two halves writes what one in a piece writes, whatever training does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp

from train.checkpoint.host_copies import CopyMemory
from train.checkpoint.pending_save import Best, Save
from train.checkpoint.shard_files import MODEL, read_model
from train.checkpoint.sharded_save import intercepting_dcp_save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 8, generator=generator)
    return {"model": {"whole": whole, "view": whole[1:3, :4].t(), "half": torch.ones(7).bfloat16(), "step": 3}}


@pytest.fixture
def trainer():
    plugin = SimpleNamespace(state_dict_config=SimpleNamespace(offload_to_cpu=True))
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    return SimpleNamespace(model=torch.nn.Linear(2, 2), accelerator=accelerator)


@pytest.fixture
def save(tmp_path):
    (tmp_path / "own" / "checkpoint-1").mkdir(parents=True)
    return Save(1, tmp_path / "all", tmp_path / "own", {}, Best(), CopyMemory())


def give(states, save, trainer) -> None:
    """As accelerate does."""
    with intercepting_dcp_save(save, trainer):
        assert trainer.accelerator.state.fsdp_plugin.state_dict_config.offload_to_cpu is False
        dcp.save(states, storage_writer=dcp.FileSystemWriter(save.files_folder / MODEL))
    assert trainer.accelerator.state.fsdp_plugin.state_dict_config.offload_to_cpu is True


def test_the_bytes_are_those_of_dcp_when_the_states_were_given(states, save, trainer, tmp_path):
    dcp.save(states, storage_writer=dcp.FileSystemWriter(tmp_path / "reference"), no_dist=True)
    wanted = {name: value.clone() for name, value in states["model"].items() if torch.is_tensor(value)}
    give(states, save, trainer)
    for value in states["model"].values():
        if torch.is_tensor(value):
            value += 1  # training goes on
    assert not list(save.files_folder.rglob("*.distcp")) and not save.errors
    for task in save.tasks:
        task()
    [file] = save.files_folder.rglob("*.distcp")
    assert file.read_bytes() == (tmp_path / "reference" / "__0_0.distcp").read_bytes()
    [shards] = save.shards
    written = shards.complete(save.files_folder, [shards.results])
    assert list(written) == [f"{MODEL}/.metadata"]
    found = read_model(save.files_folder)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_goes_elsewhere_is_left_to_dcp(states, save, trainer, tmp_path):
    with intercepting_dcp_save(save, trainer):
        dcp.save(states, storage_writer=dcp.FileSystemWriter(tmp_path / "elsewhere"), no_dist=True)
    assert (tmp_path / "elsewhere" / ".metadata").exists() and not save.shards


def test_an_error_in_the_plan_is_noted(states, save, trainer, monkeypatch):
    def fail(self):
        raise OSError("no space")

    monkeypatch.setattr(dcp.DefaultSavePlanner, "create_local_plan", fail)
    give(states, save, trainer)
    assert save.errors == ["OSError: no space"] and not save.shards and not save.tasks
