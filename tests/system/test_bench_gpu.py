"""The GPU benchmark's arithmetic, documents and options. Its whole path runs in tests/system/test_gpu_rehearsal.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.benchmarks import bench_gpu, gpu_arithmetic, gpu_inputs, gpu_watch
from tests.benchmarks.gpu_ways import DRY_SEQ_LEN, PADDED, Task, trl_options


def tiny_model(lora: bool):
    """Of the tiny shape, with adapters as the benchmark has them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3Config

    model = AutoModelForCausalLM.from_config(Qwen3Config(**gpu_inputs.TINY, tie_word_embeddings=False))
    adapters = LoraConfig(r=gpu_arithmetic.LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapters) if lora else model


@pytest.mark.parametrize("lora", [False, True])
def test_needed_operations_are_those_that_training_logs(lora):
    """Against `train.loop.throughput` on a real model."""
    from train.loop.throughput import model_flops

    found = model_flops(tiny_model(lora))
    expected = found.per_token * 100 + found.per_trained_token * 60 + found.per_pair[None] * 700
    assert gpu_arithmetic.needed_operations(gpu_inputs.TINY, 100, 60, 700, lora=lora) == expected


def test_6n_counts_every_matrix_but_the_embedding():
    model = tiny_model(False)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert gpu_arithmetic.usual_operations(gpu_inputs.TINY, 10, lora=False) == 6 * weights * 10
    assert gpu_arithmetic.usual_operations(gpu_inputs.TINY, 10, lora=True) == 4 * weights * 10


def test_estimated_memory():
    """Weights, states and gradients by hand; a layer's activations against those that a real one keeps."""
    shape = {**gpu_inputs.TINY, "tie_word_embeddings": True}
    layer, stream = gpu_arithmetic.kept_by_a_layer(shape, 256, lora=False)
    assert stream == 256 * shape["hidden_size"] * 4
    assert layer == kept_by_a_real_layer(shape, 256)
    head = shape["vocab_size"] * shape["hidden_size"]
    weights = 2 * gpu_arithmetic.layer_weights(shape) + head
    found = {n: gpu_arithmetic.estimated_bytes(shape, 256, lora=False, checkpointing=False, passes=n) for n in (1, 2)}
    assert found[1] == (4 + 8) * weights + 2 * layer + 4 * head + gpu_arithmetic.TILE
    assert found[2] - found[1] == 4 * weights
    lora = {c: gpu_arithmetic.estimated_bytes(shape, 256, lora=True, checkpointing=c, passes=1) for c in (True, False)}
    layer, stream = gpu_arithmetic.kept_by_a_layer(shape, 256, lora=True)
    assert lora[False] - lora[True] == layer - 2 * stream


def kept_by_a_real_layer(shape, tokens: int) -> int:
    """Bytes of the storages that autograd keeps, two layers less one, with the kernel's stand-in."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from tests.gpu import stand_in
    from train.model import varlen

    def kept(layers: int) -> int:
        config = Qwen3Config(**{**shape, "num_hidden_layers": layers})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="varlen").train()
        weights, found = {p.data_ptr() for p in model.parameters()}, {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage  # held, so that no address is used twice
            return tensor

        ends = torch.tensor([0, tokens // 2, tokens], dtype=torch.int32)
        positions = torch.arange(tokens // 2).repeat(2)[None]
        given = {"position_ids": positions, "cu_seq_lens_q": ends, "max_length_q": tokens // 2, "use_cache": False}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            model.model(input_ids=torch.ones(1, tokens, dtype=torch.long), **given)
        return sum(storage.nbytes() for storage in found.values())

    varlen.register()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(varlen, "_has_kernel", varlen._has_kernel)  # put back at the end
        stand_in.install()
        return kept(2) - kept(1)


@pytest.mark.parametrize("way", ["trl_packed_varlen", "trl_packed", "trl_padded"])
def test_all_ways_of_trl_take_the_same_documents_a_step(way, tmp_path):
    documents = gpu_inputs.make_documents(2_000, 300, DRY_SEQ_LEN)
    task = Task(shape="tiny", way=way, steps=2, folder=tmp_path, dry_run=True, rows=4)
    options = trl_options(task, documents)
    rows = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
    if way != "trl_padded":
        assert rows == 4 and options["packing"] and options["max_length"] == DRY_SEQ_LEN
        assert options["model_init_kwargs"].get("attn_implementation") == ("varlen" if way.endswith("varlen") else None)
    else:
        tokens = rows * sum(len(ids) for ids, _ in documents) / len(documents)
        assert tokens == pytest.approx(4 * DRY_SEQ_LEN, rel=PADDED / rows)


def test_rows_that_do_not_divide():
    task = Task(shape="8B_lora", way="packhaul", steps=2, folder=None, dry_run=False, rows=3)
    with pytest.raises(ValueError, match="--rows 3: expected a multiple of 2 for 8B_lora"):
        _ = task.batch


def test_steps_after_the_warm_up_are_counted_from_its_end(tmp_path):
    seen = gpu_watch.Watched(ends=[(float(t), [100, 60, 500.0]) for t in (10, 17, 19, 21, 24)])
    task = Task(shape="tiny", way="packhaul", steps=5, folder=tmp_path, dry_run=True)
    found = bench_gpu.speed(task, seen, warm_up=2, traced=0)
    assert found["step_seconds"] == pytest.approx(7 / 3, abs=1e-3) and found["each_step_seconds"] == [2, 2, 3]
    assert found["tokens_per_second"] == round(300 / 7) and found["trained_tokens_per_second"] == round(180 / 7)
    assert bench_gpu.speed(task, seen, warm_up=2, traced=2)["each_step_seconds"] == [2]
    with pytest.raises(ValueError, match="expected more than 5 steps beyond the warm-up, found 5"):
        bench_gpu.speed(task, seen, warm_up=5, traced=0)


def test_figures_are_written_after_each_measurement(tmp_path, monkeypatch):
    """What ends the process then costs only the rest."""
    written = []

    def measure(task, warm_up, profile):
        written.append(json.loads((tmp_path / "out.json").read_text()) if written else None)
        return {"way": task.way}

    monkeypatch.setattr(bench_gpu, "measure", measure)
    assert bench_gpu.main(["--dry-run", "--output", str(tmp_path / "out.json")]) == 0
    assert [len(report["measured"]) for report in written[1:]] == list(range(1, 2 * len(bench_gpu.WAYS)))


def test_nothing_is_saved_at_the_end_but_checkpoints_are():
    from transformers import Trainer

    from tests.benchmarks.gpu_ways import no_final_weights

    saved = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "save_model", lambda self, folder, internal: saved.append(folder))
        with no_final_weights():
            Trainer.save_model(None, "at the end")
            Trainer.save_model(None, "checkpoint-2", _internal_call=True)
    assert saved == ["checkpoint-2"]


def test_lengths_are_alpacas():
    """The real means are 25.5 and 58.9; straight lines between the quantiles raise them a little."""
    documents = gpu_inputs.make_documents(20_000, 300)
    assert np.mean([start for _, start in documents]) == pytest.approx(25.5, rel=0.2)
    assert np.mean([len(ids) - start for ids, start in documents]) == pytest.approx(58.9, rel=0.2)
