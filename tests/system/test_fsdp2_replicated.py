"""FSDP2 on four CPU processes that shard in pairs and replicate over the pairs (HSDP): equal to an independent loop."""

from __future__ import annotations

from tests.support.in_process import assert_equal_training, assert_equal_weights, train_plainly
from tests.support.references import LEARNING_RATE, SEED, STEPS, adamw, load
from tests.support.training import history, make_shards, run_config

# What `accelerate launch` makes of parallelism_config.
PAIRS = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


def test_equals_the_plain_loop_also_when_resumed_from_shards(worlds, tmp_path, tiny_tokenizer, tiny_model_dir):
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1] * 12, "long": [6, 6]})
    base = tiny_model_dir("llama")
    plan = {"num_train_epochs": STEPS, "disable_tqdm": True, "expected_distributed_type": "FSDP"}
    plan |= {"learning_rate": LEARNING_RATE, "seed": SEED, "expected_world_size": 4}
    plan |= {"data": str(shards), "model_name_or_path": str(base)}
    whole = run_config(tmp_path / "whole.yaml", **plan, output_dir=str(tmp_path / "whole"))
    in_parts = {"sequence_parallel": 2, "gradient_accumulation_steps": 2, "output_dir": str(tmp_path / "parts")}
    arguments = [f"{whole}@3", str(run_config(tmp_path / "parts.yaml", **plan, **in_parts))]
    more = {"processes": 4, "environment": PAIRS}
    _, said = worlds.run_module("fsdp2", "tests.support.fsdp_runs", arguments, tmp_path / "log", **more)
    assert said.count(f"has run {whole}") == 8 and said.count("has run ") == 12, said[-6000:]
    assert "resuming from" in said and len(list((tmp_path / "whole" / "checkpoint-3").glob("*/__*.distcp"))) == 8
    expected = train_plainly(load(base), shards, STEPS, make_optimizer=adamw)
    for run_dir in (tmp_path / "whole", tmp_path / "parts"):
        steps = [entry for entry in history(run_dir) if "loss" in entry]
        assert_equal_training(steps, expected, loss=5e-6, norm=5e-5)
        assert_equal_weights(load(run_dir).state_dict(), expected.model.state_dict(), atol=2e-5)
