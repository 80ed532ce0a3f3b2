"""What the end of a step costs: the host reads from the device once, for guard and preemption together."""

from __future__ import annotations

import json

import pytest

from tests.support.training import make_shards

GUARD = {"tolist in train.loop.bad_steps._values": 1}  # reads loss, norm and signals at once
MEAN = {"all_reduce in train.loop.bad_steps.mean_over_processes": 1}
ASKED = {"all_reduce in train.run.distributed.all_reduce_max": 1, "item in train.run.distributed.all_reduce_max": 1}
# Policy; rank, step and moment of a signal; what each step costs; the step after which all processes stop.
ONE_PROCESS = [
    ("stop", (0, 3, "before"), GUARD, 3),
    ("stop", (0, 3, "after"), GUARD, 3),
    ("ignore", (0, 3, "after"), {}, 3),
]
TWO_PROCESSES = [
    ("stop", (1, 3, "before"), MEAN | GUARD, 3),
    ("stop", (1, 3, "after"), MEAN | GUARD, 4),
    ("skip", (0, 3, "after"), MEAN | GUARD, 4),
    ("ignore", (1, 3, "after"), ASKED, 3),  # the guard reads nothing
]


@pytest.mark.parametrize("cases", [ONE_PROCESS, TWO_PROCESSES], ids=["one process", "two processes"])
def test_a_step_asks_the_device_once(cases, tmp_path, worlds, tiny_tokenizer, tiny_model_dir):
    processes = 1 if cases is ONE_PROCESS else 2
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"a": [2] * 40}, seq_len=128, eval_fraction=0.0)
    options = {"max_steps": 6, "gradient_accumulation_steps": 2}
    runs = [{"options": {**options, "on_bad_step": policy}, "signal": signal} for policy, signal, *_ in cases]
    settings = {"shards": str(shards), "model": str(tiny_model_dir("llama")), "folder": str(tmp_path), "runs": runs}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    words, log = [tmp_path / "settings.json"], tmp_path / "log"
    codes, said = worlds.run_module(
        "cpu_single", "tests.support.step_end_run", words, log, processes=processes, alone=processes == 1
    )
    assert codes == [0] * processes, said[-6000:]
    for rank in range(processes):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for one, (_, _, costs, last_step) in zip(found, cases, strict=True):
            assert (one["world"], one["last_step"]) == (processes, last_step)
            assert [ours(counts) for counts in one["counts"]] == [costs] * last_step


def ours(counts: dict[str, int]) -> dict[str, int]:
    """What this project asks for, without what the libraries do."""
    return {what: number for what, number in counts.items() if " in train." in what}
