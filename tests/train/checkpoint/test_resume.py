"""Which checkpoint a start goes on from, and that it is of this run: by markers alone, without training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.checkpoint_folders import save
from train.checkpoint import folders, resume
from train.config.own_options import OwnOptions
from train.config.run_config import load_run_config
from train.run import log, run_record

HERE = {"data_seed": 7, "row_order": "random", "adapters": {}, "model": "base", "manifest_sha256": "a" * 64}


def written_with(**changes) -> folders.Checkpoint:
    """A checkpoint whose marker holds HERE, changed; what is None is left out, as older ones do."""
    extra = {name: value for name, value in {**HERE, **changes}.items() if value is not None}
    return folders.Checkpoint(Path("run/checkpoint-2"), 2, 1, extra, {})


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("manifest_sha256", "b" * 64),
        ("data_seed", 8),
        ("row_order", "sequential"),
        ("adapters", {"use_peft": True}),
        ("expert_parallel", True),
    ],
)
def test_a_marker_is_compared_with_this_start(name, before):
    with pytest.raises(ValueError, match=f"checkpoint-2 was written with {name} .*, here it is "):
        resume.check_identity(written_with(**{name: before}), HERE)
    resume.check_identity(written_with(**{name: None}), HERE)
    resume.check_identity(written_with(), HERE)


def test_a_marker_from_before_expert_parallelism_is_one_without():
    with pytest.raises(ValueError, match="was written with expert_parallel False, here it is True"):
        resume.check_identity(written_with(), {**HERE, "expert_parallel": True})
    resume.check_identity(written_with(expert_parallel=True), {**HERE, "expert_parallel": True})


@pytest.mark.parametrize(
    ("settings", "spread"), [(None, False), ({}, False), ({"enabled": False}, False), ({"enabled": True}, True)]
)
def test_a_marker_says_whether_experts_are_spread(settings, spread):
    config = load_run_config(["--data=shards", "--model_name_or_path=model", "--output_dir=run"])
    plugin = None if settings is None else SimpleNamespace(deepspeed_config={"expert_parallel": settings})
    args = SimpleNamespace(seed=7, data_seed=None, train_sampling_strategy="random", deepspeed_plugin=plugin)
    assert resume.identity(config, args)["expert_parallel"] is spread


def test_a_marker_of_another_model_is_a_warning(capsys):
    log.set_up()
    resume.check_identity(written_with(model="other"), HERE)
    said = "checkpoint-2 was written by a run on the model other, here it is base"
    assert capsys.readouterr().err == f"sft: WARNING: {said}\n"


BASE = {"config": "c" * 64, "weights": "d" * 32}
LORA = {**HERE, "adapters": {"use_peft": True}}


@pytest.mark.parametrize("part", ["config", "weights"])
def test_adapters_of_another_base_model_are_refused_and_a_full_model_is_a_warning(part, capsys):
    log.set_up()
    found = {"base_model": {**BASE, part: "e" * 64}}
    with pytest.raises(ValueError, match=f"holds adapters of the model that was at base; base has .*{part} eeee"):
        resume.check_identity(written_with(**found, adapters={"use_peft": True}), {**LORA, "base_model": BASE})
    resume.check_identity(written_with(**found), {**HERE, "base_model": BASE})
    said = capsys.readouterr().err
    assert said.startswith("sft: WARNING: checkpoint-2 was written by a run that began from base; base has ")
    assert f"{part} eeee" in said


def test_an_equal_base_model_elsewhere_is_no_remark(capsys):
    log.set_up()
    moved = written_with(base_model=BASE, model="/elsewhere/base", adapters={"use_peft": True})
    resume.check_identity(moved, {**LORA, "base_model": {**BASE, "commit": "1"}})
    assert capsys.readouterr().err == ""


def test_adapters_over_weights_that_are_quantised_otherwise_are_refused():
    here = {**LORA, "quantisation": {"bnb_4bit_quant_type": "nf4"}}
    with pytest.raises(ValueError, match="its adapters belong to other weights"):
        resume.check_identity(written_with(adapters={"use_peft": True}, quantisation={}), here)


def test_a_run_directory_of_other_shards_is_refused(tmp_path):
    """By the hash of the manifest's bytes, which the record of the first start holds."""
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    shards.mkdir()
    run_dir.mkdir()
    config = SimpleNamespace(own=OwnOptions(data=str(shards)), sft={}, model={})
    (shards / "manifest.json").write_bytes(b'{"rows": 1}')
    first = run_record.make_record(run_dir, config, 1)
    assert first["manifest_sha256"] == hashlib.sha256(b'{"rows": 1}').hexdigest()
    run_record.write_record(run_dir, first)
    assert run_record.make_record(run_dir, config, 1) == first
    (shards / "manifest.json").write_bytes(b'{"rows": 2}')
    with pytest.raises(
        ValueError, match=rf"holds a run on other shards \(manifest {first['manifest_sha256'][:12]}, now"
    ):
        run_record.make_record(run_dir, config, 1)


@pytest.mark.parametrize("what", ["checkpoint", "final"])
def test_never_refuses_a_folder_with_checkpoints_and_begins_in_another(what, tmp_path):
    config = SimpleNamespace(own=SimpleNamespace(resume="never"))
    assert resume.find_resume(config, tmp_path, None) is None
    if what == "checkpoint":
        save(tmp_path, 2)
    else:
        (tmp_path / "model.safetensors").write_bytes(b"final")
        folders.publish(tmp_path, step=4, world_size=1, extra={})
    with pytest.raises(ValueError, match=r"resume is 'never', but .* holds checkpoints: choose another output_dir"):
        resume.find_resume(config, tmp_path, None)
