"""Bytes of weights, gradients and states: against the optimizers' own tensors, and by hand for each ZeRO stage."""

from __future__ import annotations

import dataclasses

import bitsandbytes
import pytest
import torch
from peft import LoraConfig
from transformers.optimization import Adafactor

from tests.conftest import ROOT
from train.memory.changes import ZERO
from train.memory.optimizer_states import is_known, states_of
from train.memory.quantised import packed_bytes
from train.memory.setting import Setting, Sharding
from train.memory.states import checkpoint_bytes, held
from train.memory.tracing import Weight

ELEMENTS = 8 * 1000 * 1000  # of 8 layers, all trained
WEIGHTS = [
    Weight(name="w", count=8, elements=1000 * 1000, itemsize=2, trained=True, embedding=False, columns=1000, layer=0)
]
MATRIX = (100, 50)


def zero(stage: int, processes: int = 4, **settings) -> Setting:
    sharding = Sharding(kind="zero", processes=processes, zero={"stage": stage, "reduce_bucket_size": 1000, **settings})
    return Setting(rows=1, seq_len=1, accumulation=2, sharding=sharding)


def bytes_of(optimizer: torch.optim.Optimizer) -> int:
    """Of all states that are as large as a row, after a step."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    found = [v for v in values if torch.is_tensor(v) and v.numel() > 1 and "qmap" not in str(v.shape)]
    return sum(v.numel() * v.element_size() for v in found)


@pytest.mark.parametrize(
    ("optim", "make"),
    [
        ("adamw_torch", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
        ("adagrad", torch.optim.Adagrad),
        ("sgd", lambda w: torch.optim.SGD(w, lr=0.1)),
        ("adafactor", lambda w: Adafactor(w, lr=1e-3, relative_step=False, scale_parameter=False)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_the_optimizers_own(optim, make, dtype):
    if optim == "adafactor" and dtype == torch.bfloat16:
        pytest.skip("keeps rows and columns, in fp32 once it has stepped")
    weight = torch.nn.Parameter(torch.ones(MATRIX, dtype=dtype))
    optimizer = make([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    found = states_of(optim, weight.numel(), weight.element_size(), columns=MATRIX[1])
    assert (found.gpu, found.paged) == (bytes_of(optimizer), 0)


@pytest.mark.parametrize(
    ("optim", "make"),
    [
        ("adamw_8bit", bitsandbytes.optim.AdamW8bit),
        ("lion_8bit", bitsandbytes.optim.Lion8bit),
        ("ademamix_8bit", bitsandbytes.optim.AdEMAMix8bit),
        ("lion_32bit", bitsandbytes.optim.Lion),
        ("ademamix", bitsandbytes.optim.AdEMAMix),
    ],
)
def test_states_of_bitsandbytes(optim, make):
    """As it makes them for a weight, without a step: its kernels are the GPU's."""
    # Embeddings of other tests keep 32 bits there, by the address of the weight: this one may have it now.
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()
    weight = torch.nn.Parameter(torch.ones(MATRIX))
    optimizer = make([weight])
    optimizer.init_state(optimizer.param_groups[0], weight, 0, 0)
    state = {k: v for k, v in optimizer.state[weight].items() if torch.is_tensor(v) and "qmap" not in k}
    size = sum(v.numel() * v.element_size() for v in state.values())
    assert states_of(optim, weight.numel(), 4).gpu == size


def test_small_weights_embeddings_and_pages():
    assert states_of("adamw_8bit", 4095, 4).gpu == 8 * 4095
    assert states_of("adamw_8bit", 10_000, 4, embedding=True).gpu == 8 * 10_000
    paged = states_of("paged_adamw_8bit", 1_000_000, 4)
    assert (paged.gpu, paged.paged) == (0, 2 * (1_000_000 + 4 * 3907))
    assert states_of("paged_adamw_32bit", 99_999, 4).gpu == 8 * 99_999


@pytest.mark.parametrize("optim", ["galore_adamw", "adamw_torch_8bit", "lomo", "schedule_free_adamw", "apollo_adamw"])
def test_an_optimizer_that_is_not_counted_is_said(optim):
    assert not is_known(optim)
    with pytest.raises(ValueError, match="not counted here"):
        held(WEIGHTS, dataclasses.replace(zero(2), optim=optim), 64)


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_are_those_of_bitsandbytes(nested):
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(256, 512), quant_type="nf4", compress_statistics=nested)
    constants = [state.absmax, *([state.state2.absmax] if nested else ())]
    size = sum(t.numel() * t.element_size() for t in (packed, *constants))
    assert packed_bytes(256, 512, 4, nested) == size


def test_files_of_packed_weights_stay_on_a_cpu_alone():
    """The matrices of 8 layers in fp32, next to what is packed of them."""
    packed = [dataclasses.replace(WEIGHTS[0], elements=500_000, itemsize=1, trained=False, unpacked=1_000_000)]
    on_cpu = Setting(rows=1, seq_len=1, bits=4, file_dtype="float32", on_gpu=False)
    assert held(packed, on_cpu, 64).files == 4 * ELEMENTS
    for other in ({"on_gpu": True}, {"file_dtype": "bfloat16"}, {"bits": None}):
        assert held(packed, dataclasses.replace(on_cpu, **other), 64).files == 0


class TestZero:
    """Four processes: a part is two million weights."""

    def test_stage_1(self):
        found = held(WEIGHTS, zero(1), 64)
        assert (found.weights, found.gradients) == (2 * ELEMENTS, 2 * ELEMENTS)
        assert found.optimizer == (4 + 8) * ELEMENTS // 4
        assert found.step == (2 + 2 + 4) * ELEMENTS // 4
        assert (found.buffers, found.in_backward) == (2 * 1000, 0)  # kept from the first micro-batch to the last
        once = held(WEIGHTS, dataclasses.replace(zero(1), accumulation=1), 64)
        assert (once.buffers, once.in_backward) == (0, 2 * 1000)

    def test_stage_2(self):
        found = held(WEIGHTS, zero(2, overlap_comm=True), 64)
        assert (found.buffers, found.gradients) == (0, 2 * ELEMENTS // 4)
        # two buckets, and the part's gradients of the pass that runs, as the bucket is smaller than the model
        assert found.in_backward == 2 * 2 * 1000 + 2 * ELEMENTS // 4
        assert found.optimizer == 12 * ELEMENTS // 4

    def test_stage_3(self):
        found = held(WEIGHTS, zero(3, stage3_param_persistence_threshold=10), 64)
        assert found.weights == 2 * ELEMENTS // 4
        assert found.buffers == 2 * ELEMENTS + 2 * 2 * 1000  # all gathered: a small model is used again soon
        assert found.gradients == 2 * ELEMENTS // 4

    def test_small_weights_of_stage_3_stay_whole(self):
        found = held(WEIGHTS, zero(3, stage3_param_persistence_threshold=1000 * 1000), 64)
        assert (found.weights, found.buffers) == (2 * ELEMENTS // 4 + 2 * ELEMENTS, 2 * 2 * 1000)

    def test_half_the_reuse_distance_of_stage_3_stays(self):
        distances = {"stage3_max_reuse_distance": 4e6, "stage3_prefetch_bucket_size": 1e6}
        found = held(WEIGHTS, zero(3, stage3_param_persistence_threshold=10, **distances), 64)
        assert found.buffers == 2 * (2 + 1 + 1) * 1000 * 1000 + 2 * 2 * 1000  # with what is fetched, and the largest

    def test_gradients_that_are_not_contiguous_have_no_bucket(self):
        found = held(WEIGHTS, zero(1, contiguous_gradients=False), 64)
        assert (found.buffers, found.in_backward) == (0, 0)

    def test_states_on_a_disk_are_not_in_the_host(self):
        hosts = [held(WEIGHTS, zero(3, offload_optimizer={"device": kind}), 64).host for kind in ("nvme", "cpu")]
        assert hosts == [0, (4 + 8 + 4 + 2) * ELEMENTS // 4]

    def test_offload(self):
        found = held(WEIGHTS, zero(2, offload_optimizer={"device": "cpu"}), 64)
        assert (found.optimizer, found.gradients, found.weights) == (0, 0, 2 * ELEMENTS)
        assert found.host == (4 + 8 + 4 + 2 + 2) * ELEMENTS // 4

    def test_stage_0_is_not_guessed(self):
        with pytest.raises(ValueError, match="stage 0 is not counted"):
            held(WEIGHTS, zero(0), 64)

    def test_a_checkpoint_has_the_fp32_weights_as_well(self):
        assert checkpoint_bytes(WEIGHTS, zero(2)) == (2 + 4 + 8) * ELEMENTS
        frozen = dataclasses.replace(WEIGHTS[0], name="base", trained=False)
        alone = dataclasses.replace(zero(2), adapters=LoraConfig())
        assert checkpoint_bytes([*WEIGHTS, frozen], alone) == (2 + 4 + 8) * ELEMENTS


def test_fsdp2_gathers_two_layers_and_the_root():
    head = dataclasses.replace(WEIGHTS[0], name="head", count=1, elements=500_000, layer=None)
    setting = dataclasses.replace(zero(2), sharding=Sharding(kind="fsdp2", processes=4))
    found = held([*WEIGHTS, head], setting, 64)
    assert found.buffers == 2 * (500_000 + 2 * 1000 * 1000)
    assert (found.in_backward, found.late, found.weights) == (4 * 1000 * 1000, 4 * 500_000, ELEMENTS + 500_000)
    pairs = dataclasses.replace(setting, sharding=Sharding(kind="fsdp2", processes=8, replicas=2))
    assert held([*WEIGHTS, head], pairs, 64) == found


def test_the_stages_proposed_are_those_of_the_files():
    import json

    for name, settings in ZERO.items():
        written = json.loads((ROOT / f"configs/deepspeed/{name}.json").read_text())["zero_optimization"]
        for key, value in settings.items():
            found = written[key]
            assert (found["device"] if isinstance(found, dict) else found) == (
                value["device"] if isinstance(value, dict) else value
            ), (name, key)
        assert (ROOT / f"configs/accelerate/{name}.yaml").exists()
