"""Estimated memory against what was measured on a GPU, and its parts against plain arithmetic."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import transformers
from peft import LoraConfig
from transformers import Qwen3Config

from tests.benchmarks.gpu_inputs import SHAPES
from tests.conftest import ROOT
from train.memory import stateful, tracing
from train.memory.estimate import GIB, estimate
from train.memory.fit import Fit
from train.memory.setting import Setting, Sharding
from train.memory.skeleton import NotTraced, build

MEASURED = json.loads((ROOT / "tests/benchmarks/results/gpu_nvidia_h200.json").read_text())
ZERO_1 = Sharding(kind="zero", zero={"stage": 1})
FULL = Setting(rows=1, seq_len=8192, accumulation=4)
LORA = Setting(
    rows=2,
    seq_len=8192,
    dtype="bfloat16",
    checkpointing=True,
    adapters=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)


@pytest.fixture(scope="module")
def skeletons():
    return {name: build(Qwen3Config(**SHAPES[name], pad_token_id=None)) for name in ("0.6B", "1.7B", "8B_lora")}


@pytest.fixture(scope="module")
def small():
    shape = {**SHAPES["tiny"], "num_hidden_layers": 6, "vocab_size": 1000}
    return build(Qwen3Config(**shape, tie_word_embeddings=True, pad_token_id=None))


def peak_gib(stage: str) -> float:
    """What torch's allocator held at most, in a stage of the measurements."""
    found = [part[stage]["result"]["peak_gib"] for part in _dicts(MEASURED) if stage in part]
    return float(found[0])


def _dicts(value):
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dicts(inner)


@pytest.mark.parametrize(
    ("stage", "shape", "setting"),
    [
        ("full", "1.7B", FULL),
        ("save", "0.6B", FULL),
        ("lora", "8B_lora", LORA),
    ],
)
def test_within_one_percent_of_an_h200(skeletons, stage, shape, setting):
    found = estimate(skeletons[shape], setting)
    assert found.peak / GIB == pytest.approx(peak_gib(stage), rel=0.01)


@pytest.mark.parametrize(("stage", "sharding"), [("full_compiled", Sharding(kind="none")), ("full_zero1", ZERO_1)])
def test_above_what_compiled_layers_take_by_at_most_a_tenth(skeletons, stage, sharding):
    found = estimate(skeletons["1.7B"], dataclasses.replace(FULL, compiled=True, sharding=sharding))
    assert 1 <= found.peak / GIB / peak_gib(stage) < 1.1


@pytest.mark.parametrize("accumulation", [1, 4])
def test_bf16_copies(small, accumulation):
    """Two bytes more for a weight; gradients in fp32, of which none is there before the first pass of a step; passes in
    bf16."""
    plain = Setting(rows=1, seq_len=512, accumulation=accumulation)
    autocast, copies = (estimate(small, dataclasses.replace(plain, copies=copies)) for copies in (False, True))
    number = autocast.held.weights // 4
    assert copies.held.weights == 6 * number and copies.held.optimizer == autocast.held.optimizer == 8 * number
    assert copies.held.gradients == (4 * number if accumulation > 1 else 0)
    assert copies.held.gradients + copies.held.late == 4 * number
    assert copies.traced.layer < 0.9 * autocast.traced.layer


def test_logits_that_are_kept(small):
    """They are there from the forward pass on. Passes with more than fits are computed again; but a pass with fewer
    trained tokens may still fill what is given."""
    base = Setting(rows=8, seq_len=4096, copies=True)
    size = 8 * 4096 * 1000 * 2
    none, half, whole, more = (
        tracing.trace(small, dataclasses.replace(base, keep_logits_gib=share * size / GIB)) for share in (0, 0.5, 1, 2)
    )
    assert whole == more
    for found, share in ((half, 0.5), (whole, 1.0)):
        assert found.kept == pytest.approx(none.kept + share * size, rel=0.01)
        assert found.forward >= none.kept + share * size


def test_a_model_counted_by_its_layers_is_the_model(small):
    """Whole models are traced layer by layer: the same as one trace of all layers."""
    setting = Setting(rows=1, seq_len=512, accumulation=2, on_gpu=True)
    by_layers = tracing.trace(small, setting)
    whole = tracing._Run(small, list(range(6)), setting)
    counted = {name: getattr(by_layers, name) for name in tracing._COUNTS}
    assert counted == pytest.approx({name: getattr(whole, name) for name in tracing._COUNTS}, rel=0.01)


def test_gradients_that_grow_in_the_backward_pass(small):
    """Without accumulation they are part of the passes, and none are there before."""
    once, twice = (estimate(small, dataclasses.replace(FULL, seq_len=512, accumulation=n)) for n in (1, 2))
    assert once.held.gradients == 0
    weights = sum(p.numel() for p in small.model.parameters())
    assert twice.held.gradients == 4 * weights
    of_layers = 4 * (weights - 1000 * 32)  # the embeddings' gradient is there either way
    assert 0.8 < (once.traced.bottom - twice.traced.bottom) / of_layers <= 1  # one layer's is at work either way


def test_a_line_through_two_lengths(small):
    """The passes of many tokens are not traced, but drawn from those of few."""
    setting = dataclasses.replace(FULL, seq_len=3 * 8192)
    drawn = Fit(small, setting, None).estimate.traced
    traced = tracing.trace(small, setting)
    for name in tracing._COUNTS:
        assert getattr(drawn, name) == pytest.approx(getattr(traced, name), rel=0.001), name


def test_checkpointing_and_offloading_keep_less(small):
    setting = dataclasses.replace(FULL, seq_len=2048)
    plain = tracing.trace(small, setting)
    checkpointed = tracing.trace(small, dataclasses.replace(setting, checkpointing=True))
    offloaded = tracing.trace(small, dataclasses.replace(setting, activation_offloading=True))
    stream = 2048 * 32 * 4  # fp32: embeddings are not computed by autocast
    assert checkpointed.layer == pytest.approx(stream, rel=0.02)
    assert plain.layer > 10 * stream
    assert offloaded.layer < plain.layer / 10


def test_packed_weights_of_a_cpu_keep_their_files(small):
    """As many bytes as the linear layers have in fp32, next to the packed ones."""
    adapters = dataclasses.replace(LORA, dtype="float32", precision="no", attention="varlen", on_gpu=False)
    setting = dataclasses.replace(adapters, rows=1, seq_len=256, bits=4, file_dtype="float32")
    linear = sum(w.numel() for n, w in small.model.named_parameters() if w.dim() == 2 and "embed" not in n)
    assert estimate(small, setting).parts["files of packed weights"] == 4 * linear


def test_what_needs_its_data_is_not_guessed(small):
    class Cut(type(small.model.model.layers[0])):
        def forward(self, hidden_states, *args, **kwargs):
            return hidden_states[:, hidden_states.sum().item() :]

    broken = build(small.model.config)
    for layer in broken.model.model.layers:
        layer.__class__ = Cut
    with pytest.raises(NotTraced, match="cannot be run without data"):
        tracing.trace(broken, FULL)


def test_within_a_run_under_zero3(small, monkeypatch):
    expected = tracing.trace(small, FULL)
    of_run = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", lambda: of_run)
    assert tracing.trace(small, FULL) == expected


def test_layers_of_two_kinds():
    from transformers import Qwen3MoeConfig

    shape = {**SHAPES["tiny"], "num_hidden_layers": 5, "num_experts": 4, "num_experts_per_tok": 2}
    skeleton = build(Qwen3MoeConfig(**shape, moe_intermediate_size=16, mlp_only_layers=[0, 1, 2], pad_token_id=None))
    assert skeleton.kinds == (0, 0, 0, 1, 1)
    assert skeleton.samples() == [[0, 2, 3, 4], [0, 1, 2, 3, 4]]
    found = tracing.trace(skeleton, dataclasses.replace(FULL, seq_len=256, sharding=ZERO_1))
    weights = sum(w.count * w.elements for w in found.weights)
    assert weights == sum(p.numel() for p in skeleton.model.parameters())


@pytest.fixture(scope="module")
def hybrid():
    """Gated delta rules, of which the last layer is none."""
    from transformers import Qwen3_5TextConfig

    linear = {f"linear_{of}_head_dim": 8 for of in ("key", "value")} | {"linear_num_value_heads": 4}
    shape = {**SHAPES["tiny"], "num_hidden_layers": 6, "full_attention_interval": 3, "linear_num_key_heads": 2}
    return build(Qwen3_5TextConfig(**shape, **linear, pad_token_id=None))


def test_a_hybrid_counted_by_its_layers_is_the_model(hybrid):
    """One kind of layer needs more than the other, and takes each document by itself."""
    assert hybrid.kinds == (0, 0, 1, 0, 0, 1)
    setting = dataclasses.replace(FULL, seq_len=128, checkpointing=True, document_tokens=64)
    by_layers = tracing.trace(hybrid, setting)
    whole = tracing._Run(hybrid, list(range(6)), setting)
    counted = {name: getattr(by_layers, name) for name in tracing._COUNTS}
    assert counted == pytest.approx({name: getattr(whole, name) for name in tracing._COUNTS}, rel=0.01)


def test_long_documents_are_counted_as_short_ones(hybrid, monkeypatch):
    """Their recurrence is a loop over chunks of 64 tokens, and takes as long to trace as it has turns."""
    setting = Setting(rows=1, seq_len=512, on_gpu=False, precision="no", document_tokens=512)
    exact = tracing._Run(hybrid, [0, 2], setting)
    monkeypatch.setattr(stateful, "LONG", 256)
    found = tracing._Run(hybrid, [0, 2], setting)
    for name in tracing._COUNTS:
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=0.03), name


def test_a_loop_over_tokens_is_traced_in_short_pieces(monkeypatch):
    """RWKV's has 20 operations a token, and what they hold is by token."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 50, "pad_token_id": None}
    skeleton = build(transformers.RwkvConfig(**shape))
    setting = Setting(rows=1, seq_len=128, on_gpu=False, precision="no", document_tokens=64)
    monkeypatch.setattr(stateful, "SHORT_PIECE", 8)
    found = tracing._Run(skeleton, [0], setting)
    monkeypatch.setattr(stateful, "SHORT_PIECE", 64)
    exact = tracing._Run(skeleton, [0], setting)
    for name in tracing._COUNTS:
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=0.02), name


@pytest.mark.parametrize(("kind", "tokens"), [("Mamba", 64), ("Rwkv", 64), ("Mamba2", 256)])
def test_which_loops_are_over_single_tokens(kind, tokens):
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 50, "head_dim": 16, "num_heads": 8}
    skeleton = build(getattr(transformers, f"{kind}Config")(**shape, pad_token_id=None))
    assert stateful._pieces(skeleton.model).tokens == tokens


def test_short_documents_are_padded_to_chunks(hybrid):
    """Documents of 20 tokens take what those of 64 do: the rest is padding."""
    setting = Setting(rows=1, seq_len=320, on_gpu=False, precision="no", document_tokens=64)
    full = tracing._Run(hybrid, [0, 1], setting)
    short = tracing._Run(hybrid, [0, 1], dataclasses.replace(setting, document_tokens=20))
    assert 1.5 < short.kept / full.kept < 3.2


@pytest.mark.parametrize("kind", ["Mamba2Config", "Lfm2Config"])
def test_types_that_follow_from_other_fields(kind):
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 50, "pad_token_id": None}
    shape |= {"num_heads": 8, "head_dim": 16} if kind == "Mamba2Config" else {"intermediate_size": 64}
    shape |= {"layer_types": ["conv", "conv", "full_attention"]} if kind == "Lfm2Config" else {}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2} if kind == "Lfm2Config" else {}
    skeleton = build(getattr(transformers, kind)(**shape))
    assert sum(skeleton.stateful.values()) == (2 if kind == "Lfm2Config" else 3)
    assert tracing.trace(skeleton, Setting(rows=1, seq_len=128)).kept > 0
