"""The kernels of each attention back end, on a GPU: equal to fp32 attention, isolating, and chosen."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from tests.gpu.conftest import HEADS
from train.model import attention, document_kernels, documentwise, isolation, varlen

ARCHITECTURES = ("llama", "qwen3", "gemma3", "mistral", "qwen3_moe", "gemma2")


@pytest.fixture(scope="module", autouse=True)
def registered():
    varlen.register()


@pytest.mark.parametrize("lengths", [[1, 40, 130, 7], [1], [1, 1, 1]], ids=["documents", "filler", "fillers"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 16, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_kernel_equals_each_document_alone(kv_heads, window, dtype, lengths, device, kernel_used):
    """Forward and backward, against fp32 attention of one document at a time."""
    random = torch.Generator(device).manual_seed(0)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    shapes = [(1, heads, sum(lengths), 64) for heads in (4, kv_heads, kv_heads)]
    half = [torch.randn(s, device=device, dtype=dtype, generator=random, requires_grad=True) for s in shapes]
    full = [tensor.detach().float().requires_grad_() for tensor in half]
    module = torch.nn.Linear(1, 1, device=device, dtype=dtype)
    packed = {"cu_seq_lens_q": ends, "max_length_q": max(lengths), "sliding_window": window}
    got, _ = varlen.varlen_forward(module, *half, None, **packed)
    left = -1 if window is None else window - 1
    expected = varlen._one_by_one(*full, ends.tolist(), 0.0, None, left)
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)
    weights = torch.randn(expected.shape, device=device, generator=random)
    (got.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    for tensor, reference in zip(half, full, strict=True):
        torch.testing.assert_close(tensor.grad.float(), reference.grad, rtol=5e-2, atol=5e-2)


def setting(model_dir, device: torch.device) -> tuple[attention.Setting, bool]:
    """What the choice depends on; a rehearsal chooses as an H100 would."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    on_gpu = device.type == "cuda"
    return attention.Setting(
        use_cpu=False,
        half=True,
        batch_tokens=512,
        model_class=type(model),
        config=model.config,
        capability=torch.cuda.get_device_capability() if on_gpu else (9, 0),
    ), on_gpu


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_takes_a_flash_kernel(architecture, tiny_model_dir, device):
    """Where nothing else than torch is installed it is varlen, for every model but one with soft-capped scores."""
    name, why = attention.choose("auto", setting(tiny_model_dir(architecture, **HEADS), device)[0])
    assert name in (*attention.FLASH, "flex_attention" if architecture == "gemma2" else attention.VARLEN), why


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_back_end_isolates_in_bf16(architecture, tiny_model_dir, device, capsys):
    ids = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    folder, found, failed = tiny_model_dir(architecture, **HEADS), {}, {}
    where, on_gpu = setting(folder, device)
    names = [name for name in attention.ISOLATING if attention.unsuited(name, where) is None]
    for name in names if on_gpu else [name for name in names if name != "flex_attention"]:  # it compiles for minutes
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name, dtype=torch.bfloat16)
            model.to(device)
            add_fused_lm_head(model)
            found[name] = isolation.check(model, ids, device, torch.bfloat16)
        except Exception as error:  # one back end's failure must not hide what the others do
            failed[name] = f"{type(error).__name__}: {error}"
    with capsys.disabled():
        print(f"\n{architecture}: {found}")
    assert not failed and "eager" in found, failed


# Wide enough for the kernels of layers that carry a state.
HYBRIDS = {
    "lfm2": HEADS,
    "qwen3_5_text": {**HEADS, "linear_key_head_dim": 64, "linear_value_head_dim": 64},
    "mamba2": {"hidden_size": 256, "head_dim": 64, "num_heads": 8, "state_size": 64},
}


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_kernels_with_document_bounds(architecture, tiny_model_dir, device, capsys):
    """Real kernels once: chosen where their packages are installed, and isolating either way."""
    ids = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    folder = tiny_model_dir(architecture, **HYBRIDS[architecture])
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16).to(device)
    add_fused_lm_head(model)
    documentwise.install(model)
    layer = next(iter(documentwise.mixers(model).values()))
    lacks = document_kernels.lacks(layer)

    def prove() -> str:
        return isolation.check(model, ids, device, torch.bfloat16)

    (line,) = document_kernels.choose(model, prove)
    with capsys.disabled():
        print(f"\n{line}: {prove()}")
    assert ("kernels with document bounds" in line) == (lacks is None), line
