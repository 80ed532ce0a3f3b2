"""Another number of processes or ranks by row: the rows of a step, and what cannot go on there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.checkpoint import folders, world_size
from train.checkpoint.world_size import best_loadable, keep_global_batch, resumable
from train.config.run_config import RunConfig, load_run_config


def written(run_dir: Path, step: int, world_size: int, **extra) -> None:
    """A checkpoint as far as its marker says."""
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    folders.publish(folder, step=step, world_size=world_size, extra=extra)


def config_of(run_dir: Path, **options) -> RunConfig:
    words = {"data": "shards", "model_name_or_path": "model", "output_dir": str(run_dir), **options}
    return load_run_config([f"--{name}={value}" for name, value in words.items()])


@pytest.mark.parametrize(("world_size", "batch", "accumulation"), [(4, 2, 3), (1, 2, 12), (3, 4, 2), (24, 1, 1)])
def test_accumulation_keeps_the_rows_of_a_step(world_size, batch, accumulation, tmp_path):
    written(tmp_path, 10, 2, rows_per_step=24)
    config = config_of(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=5)
    changed, note = keep_global_batch(config, tmp_path, world_size)
    assert changed.value("gradient_accumulation_steps") == accumulation
    assert note and f"gradient_accumulation_steps is {accumulation} instead of 5" in note


@pytest.mark.parametrize(
    ("world_size", "batch", "accumulation", "message"),
    [
        (5, 1, 1, "a step took 24 rows, here it would take 5 process(es) x 1 row(s) x 1 accumulated = 5"),
        (2, 5, 1, "no accumulation makes 24 of 2 x 5"),
        (2, 1, 6, "Write gradient_accumulation_steps: 12"),
        (48, 1, 1, "24 rows need one of [1, 2, 3, 4, 6, 8, 12, 24] processes"),
    ],
)
def test_another_batch_is_refused_with_the_arithmetic(world_size, batch, accumulation, message, tmp_path):
    written(tmp_path, 10, 2, rows_per_step=24)
    config = config_of(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    with pytest.raises(ValueError) as error:
        keep_global_batch(config, tmp_path, world_size)
    assert message in str(error.value)


def test_the_same_batch_and_a_new_run_need_nothing(tmp_path):
    config = config_of(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    assert keep_global_batch(config, tmp_path, 2) == (config, None)
    written(tmp_path, 10, 2, rows_per_step=24)
    assert keep_global_batch(config, tmp_path, 2) == (config, None)


def test_a_run_that_never_resumes_takes_the_batch_that_is_given(tmp_path):
    written(tmp_path, 10, 2, rows_per_step=24)
    config = config_of(tmp_path, per_device_train_batch_size=5, resume="never")
    assert keep_global_batch(config, tmp_path, 2) == (config, None)


def test_a_checkpoint_that_does_not_say_its_batch_changes_nothing(tmp_path):
    written(tmp_path, 10, 2)
    config = config_of(tmp_path, per_device_train_batch_size=5)
    assert keep_global_batch(config, tmp_path, 2) == (config, None)


def test_the_batch_is_that_of_the_checkpoint_that_is_named(tmp_path):
    written(tmp_path, 10, 2, rows_per_step=8)
    written(tmp_path, 20, 2, rows_per_step=24)
    named = config_of(tmp_path, per_device_train_batch_size=1, resume=tmp_path / "checkpoint-10")
    changed, note = keep_global_batch(named, tmp_path, 4)
    assert changed.value("gradient_accumulation_steps") == 2
    assert note and note.startswith("checkpoint-10 was written by 2 process(es), here are 4 process(es): ")


@pytest.mark.parametrize(
    ("ranks_before", "processes", "accumulation"), [(1, 2, 24), (2, 4, 12), (4, 2, 24), (4, 4, 12)]
)
def test_ranks_that_share_rows_count_once(ranks_before, processes, accumulation, tmp_path):
    written(tmp_path, 10, 2, rows_per_step=24, sequence_parallel=ranks_before)
    config = config_of(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=5, sequence_parallel=2)
    changed, note = keep_global_batch(config, tmp_path, processes)
    assert changed.value("gradient_accumulation_steps") == accumulation
    assert note and f"{processes // 2} group(s) of 2 processes" in note


def test_the_same_batch_of_ranks_that_share_rows_needs_nothing(tmp_path):
    written(tmp_path, 10, 2, rows_per_step=24)
    config = config_of(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=12, sequence_parallel=2)
    assert keep_global_batch(config, tmp_path, 4) == (config, None)


def test_the_processes_that_would_fit_hold_whole_groups(tmp_path):
    written(tmp_path, 10, 2, rows_per_step=6, sequence_parallel=2)
    config = config_of(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1, sequence_parallel=2)
    with pytest.raises(ValueError, match=r"no accumulation makes 6 of 4 x 1.*one of \[2, 4, 6, 12\] processes"):
        keep_global_batch(config, tmp_path, 8)


def trainer_of(run_dir: Path, processes: int, stage: int | None, **more) -> SimpleNamespace:
    """As much of a trainer as is looked at before anything is rearranged.

    Args:
        stage: of ZeRO; None: without DeepSpeed.
        more: its `engine`, `optim` and `autoep_size`.
    """
    section = {"zero_optimization": {"stage": stage}}
    if "autoep_size" in more:
        section["expert_parallel"] = {"enabled": True, "autoep_size": more["autoep_size"]}
    plugin = SimpleNamespace(deepspeed_config=section, hf_ds_config=SimpleNamespace(config=section)) if stage else None
    state = SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=None)
    engine = more.get("engine") or ("DEEPSPEED" if stage else "MULTI_GPU")
    accelerator = SimpleNamespace(state=state, distributed_type=SimpleNamespace(value=engine))
    args = SimpleNamespace(
        world_size=processes, process_index=0, output_dir=str(run_dir), optim=more.get("optim", "adamw_torch")
    )
    best = SimpleNamespace(best_model_checkpoint=str(run_dir / "checkpoint-10"))
    return SimpleNamespace(args=args, accelerator=accelerator, state=best, is_deepspeed_enabled=bool(stage))


@pytest.fixture
def experts(monkeypatch):
    """The trainers' experts are spread over so many processes."""
    monkeypatch.setattr(world_size, "autoep_size", lambda args: 2)


def begin(run_dir: Path, trainer: SimpleNamespace, **options) -> Path:
    """The folder to go on from."""
    with resumable(folders.read(run_dir / "checkpoint-10"), trainer, config_of(run_dir, **options)) as folder:
        return folder


ZERO2 = {"engine": "DEEPSPEED", "zero_stage": 2, "optim": "adamw_torch"}


@pytest.mark.parametrize(
    ("before", "stage", "engine", "message"),
    [
        (ZERO2, None, "MULTI_GPU", "was written with ZeRO-2, this launch has plain: "),
        ({}, 3, "", "was written with DEEPSPEED, this launch has ZeRO-3: "),  # by an earlier version
        ({"engine": "plain", "zero_stage": None}, 3, "", "was written with plain, this launch has ZeRO-3: "),
        ({"engine": "plain", "zero_stage": None}, None, "FSDP", "was written with plain, this launch has FSDP: "),
        (
            {"engine": "FSDP", "zero_stage": None, "state_dict_type": "SHARDED_STATE_DICT"},
            None,
            "FSDP",
            "was written with FSDP and SHARDED_STATE_DICT, this launch has FSDP: ",
        ),
    ],
)
def test_states_of_another_engine_are_refused(before, stage, engine, message, tmp_path):
    written(tmp_path, 10, 2, **before)
    with pytest.raises(ValueError, match=message) as error:
        begin(tmp_path, trainer_of(tmp_path, 2, stage, engine=engine))
    assert "the optimizer states cannot be taken over" in str(error.value)


def test_states_that_lie_as_here_are_loaded_where_they_are(tmp_path):
    written(tmp_path, 10, 2, **ZERO2, autoep_size=0)
    assert begin(tmp_path, trainer_of(tmp_path, 2, 2)) == tmp_path / "checkpoint-10"


def test_an_optimizer_that_cannot_be_rearranged_is_refused_with_what_to_do(tmp_path):
    written(tmp_path, 10, 2, **{**ZERO2, "optim": "paged_adamw_8bit"})
    with pytest.raises(ValueError, match=r"2 process.* with paged_adamw_8bit, this world has 4: DeepSpeed can only"):
        begin(tmp_path, trainer_of(tmp_path, 4, 2))


@pytest.mark.parametrize(("was", "now"), [(2, 3), (3, 1)])
def test_experts_of_another_order_are_refused(was, now, experts, tmp_path):
    written(tmp_path, 10, 2, **{**ZERO2, "zero_stage": was}, autoep_size=2)
    with pytest.raises(ValueError, match=f"under ZeRO-{was}, this launch has ZeRO-{now}: DeepSpeed keeps the states"):
        begin(tmp_path, trainer_of(tmp_path, 2, now))


def test_experts_under_zero3_cannot_begin_with_a_new_optimizer(experts, tmp_path):
    written(tmp_path, 10, 2, **{**ZERO2, "zero_stage": 3}, autoep_size=2)
    with pytest.raises(ValueError, match="only together with the optimizer's states: remove it"):
        begin(tmp_path, trainer_of(tmp_path, 4, 3), reinitialize_optimizer=True)


@pytest.mark.parametrize(("was", "now", "size", "anew"), [(2, 3, 0, False), (1, 2, 2, False), (3, 3, 0, True)])
def test_states_without_such_an_order_are_not_refused(was, now, size, anew, tmp_path):
    written(tmp_path, 10, 2)
    config = config_of(tmp_path, reinitialize_optimizer=anew)
    here = {"zero_stage": now, "autoep_size": size}
    world_size._check_experts(folders.read(tmp_path / "checkpoint-10"), {"zero_stage": was}, here, config)


def test_experts_that_are_spread_otherwise_do_not_lie_as_here(tmp_path):
    written(tmp_path, 10, 2, **ZERO2, autoep_size=4)
    found, trainer = folders.read(tmp_path / "checkpoint-10"), trainer_of(tmp_path, 2, 2)
    lies = [world_size._lies_as_here(found, {"zero_stage": 2, "autoep_size": size}, trainer) for size in (4, 2)]
    assert lies == [True, False]


def test_the_best_checkpoint_of_experts_under_zero3_on_other_processes_is_not_loaded(experts, tmp_path):
    written(tmp_path, 10, 2, **{**ZERO2, "zero_stage": 3}, autoep_size=2)
    with best_loadable(trainer_of(tmp_path, 4, 3)) as found:
        assert found is False


def test_the_best_checkpoint_of_another_stage_is_named_and_not_loaded(tmp_path, caplog):
    written(tmp_path, 10, 2, **ZERO2)
    caplog.set_level(logging.WARNING)
    for trainer, loaded in ((trainer_of(tmp_path, 2, 3), False), (trainer_of(tmp_path, 2, 2), True)):
        with best_loadable(trainer) as found:
            assert found is loaded
    assert (
        caplog.text.count("the final model is that of the last step. The best one: packhaul export --checkpoint") == 1
    )


def test_a_disk_that_is_too_small_for_the_rearranged_states_is_said_before(tmp_path, monkeypatch):
    states = tmp_path / "global_step10"
    states.mkdir()
    (states / "states.pt").write_bytes(bytes(2**20))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    problem = world_size._convert(states, tmp_path / "universal")
    assert problem and problem.startswith("about 0.0 GiB are needed for that in ")
