"""The account of a training step: what is counted, by hand, and what it comes to."""

from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks import gpu_arithmetic, hybrid_account, roofline, traced_layer
from tests.benchmarks.gpu_inputs import SHAPES, TINY
from tests.support.markdown import ROOT

TOKENS = 256
SHAPE = {**TINY, "tie_word_embeddings": True}
PLAIN = {"lora": False, "checkpointing": False}


@pytest.fixture(scope="module")
def compiled():
    """A compiled layer without bf16 copies."""
    return traced_layer.compiled(SHAPE, TOKENS, **PLAIN)


def test_bytes_and_operations_are_counted():
    """Of what is read and written; of a view, of what is expanded, and of what makes no tensor: nothing."""
    with traced_layer.Counting() as counting:
        left, right = torch.ones(8, 16), torch.ones(16, 4)
        made = counting.work.bytes
        (left.T * 2).add_(1)
        left.expand(3, 8, 16).sum()
        left @ right
    assert made == 4 * (8 * 16 + 16 * 4)
    doubled, added, summed = 2 * 4 * 128, 2 * 4 * 128, 4 * 128 + 4
    assert counting.work.bytes - made == doubled + added + summed
    assert counting.work.operations == 2 * 8 * 16 * 4


@pytest.mark.parametrize(("checkpointing", "times"), [(False, 6), (True, 8)])
def test_products_of_a_layer(checkpointing, times):
    """Forward and two backward; with checkpointing a second forward. Compiled, what nothing needs again is left out."""
    how = {"lora": False, "checkpointing": checkpointing}
    eager = traced_layer.eager(SHAPE, TOKENS, **how)
    weights = gpu_arithmetic.layer_weights(SHAPE)
    last = SHAPE["intermediate_size"] * SHAPE["hidden_size"] * checkpointing  # its output is not needed again
    assert eager.operations == 2 * TOKENS * (times // 2 * weights) - 2 * TOKENS * last
    assert eager.attention_bytes > 0


def test_compiling_moves_fewer_bytes(compiled):
    """By the plan of inductor, for the same products; it says what is kept for the backward pass."""
    eager = traced_layer.eager(SHAPE, TOKENS, **PLAIN)
    assert compiled.operations == eager.operations
    assert 0.1 < compiled.bytes / eager.bytes < 0.5 and compiled.kernels < eager.kernels
    stream = 4 * TOKENS * SHAPE["hidden_size"]
    assert compiled.kept > stream


def test_copies_move_fewer_bytes(compiled):
    """The stream between layers, in and out of a residual addition, is in half the bytes; weights need no casts."""
    work = traced_layer.compiled(SHAPE, TOKENS, **PLAIN, copies=True)
    assert work.operations == compiled.operations
    assert work.bytes < 0.85 * compiled.bytes and work.kept < compiled.kept


def test_adding_gradients_up():
    """Bytes for each weight: nothing to add in one pass, but with copies the gradient becomes fp32."""
    for copies, passes, expected in ((False, 1, 0), (False, 4, 36), (True, 1, 6), (True, 4, 36)):
        case = roofline.Case(shape="1.7B", compiled=True, copies=copies, passes=passes)
        assert roofline.adding_bytes(case) == expected


def test_the_table_of_the_account():
    """docs/gpu.md says what the results say."""
    table = (ROOT / "docs" / "gpu.md").read_text()
    for device in roofline.DEVICES:
        found = json.loads((roofline.RESULTS / f"roofline_{device}.json").read_text())["cases"]
        assert set(found) == set(roofline.CASES)
        for name, case in found.items():
            begin = f"| {case['step_ms']:,.0f} | {case['mfu']:.3f} | {case['tokens_per_second']:,} |"
            assert (begin if device == "h100" else f"| {case['step_ms']:,.0f} |") in table, (device, name)


def test_what_groups_of_documents_cost_a_hybrid():
    """docs/gpu.md says what the results say, and those what is counted now."""
    found = hybrid_account.account(roofline.SEQ_LEN, roofline.DEVICES["h100"].products)
    assert found == json.loads((roofline.RESULTS / "roofline_h100.json").read_text())["hybrid"]
    share = found["stateful_weights"] * found["padding"] / (1 - found["padding"])
    assert found["groups_add"] == pytest.approx(share, abs=1e-3) and 0.05 < share < 0.1
    text = (ROOT / "docs" / "gpu.md").read_text()
    for name in ("stateful_weights", "padding", "groups_add"):
        assert f"{found[name]:.3f}" in text, name


def test_account_of_a_step(capsys):
    """Its parts add up to its time, and the MFU follows from that; an H200 is faster than an H100."""
    found = {}
    for device in ("h100", "h200"):
        assert roofline.main(["--device", device, "--cases", "1.7B_full_eager"]) == 0
        found[device] = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]["1.7B_full_eager"]
    one = found["h100"]
    assert sum(one["parts"].values()) == pytest.approx(one["step_ms"], abs=1)
    tokens = 4 * roofline.SEQ_LEN
    usual = gpu_arithmetic.usual_operations(SHAPES["1.7B"], tokens, lora=False)
    assert one["mfu_6n"] == pytest.approx(usual / (one["step_ms"] / 1000) / roofline.PEAK, abs=1e-3)
    assert 0.2 < one["mfu"] < found["h200"]["mfu"] < 0.5
    assert found["h200"]["measured_to_account"] == pytest.approx(
        found["h200"]["measured_step_ms"] / found["h200"]["step_ms"], abs=0.01
    )
