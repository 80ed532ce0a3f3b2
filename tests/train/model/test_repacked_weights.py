"""QLoRA on CPUs with avx512_bf16, where bitsandbytes repacks 4-bit weights in eval mode; emulated on all others.

There the repacked product is a kernel outside of autograd: used in training, it loses the gradient without an error.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.in_process import assert_equal_training, train_here, train_plainly
from tests.support.references import LEARNING_RATE, LORA, NF4, SEED, STEPS, adamw, adapted, nf4
from tests.support.training import make_shards

BLOCK = 32  # rows of a repacked block


def unpack(packed: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(N, K) codes of a repacked weight: blocks of 32 rows, each byte with two codes 32 apart."""
    rows, columns = shape
    pairs = packed.reshape(-1, BLOCK)
    codes = torch.cat([pairs & 0xF, pairs >> 4], dim=-1).reshape(rows // BLOCK, columns // 2, BLOCK, 2)
    return codes.transpose(1, 2).reshape(rows, columns).long()


@torch.no_grad()
def repacked_product(x, packed, shape, scales, code, blocksize):
    """What bitsandbytes' kernel for such CPUs gives: bf16, and nothing for autograd to follow."""
    weight = code[unpack(packed, shape)] * scales.float().T.repeat_interleave(blocksize, dim=1)
    return (x.bfloat16() @ weight.bfloat16().T).to(x.dtype)


@pytest.fixture
def repacking_cpu(monkeypatch):
    """bitsandbytes believes that the CPU has avx512_bf16."""
    from bitsandbytes.nn import modules

    if modules.has_avx512bf16():  # its own kernel is there
        yield
        return
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    library = torch.library.Library("bitsandbytes", "IMPL")
    library.impl("gemv_4bit", repacked_product, "CPU")
    yield
    library._destroy()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(
        tmp_path_factory.mktemp("repacked"), tiny_tokenizer.name_or_path, {"short": [1] * 40}, eval_fraction=0.1
    )


def test_what_bitsandbytes_does_there(repacking_cpu):
    """Repacks in eval mode, stays so in training, and has no gradient then: why the layers are told not to."""
    import bitsandbytes

    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
    x = torch.randn(5, 128)
    trained = layer.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), trained, rtol=0, atol=0.05)
    assert layer.weight.quant_state.packing_format_for_cpu
    layer.train()
    x.requires_grad_()
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        (layer(x) + x.sum()).sum().backward()
    assert (x.grad == x.grad[0, 0]).all()  # of the second term alone


@pytest.mark.parametrize(("width", "nested"), [(32, True), (128, True), (128, False)])  # 32 cannot be repacked
def test_qlora_equals_the_plain_loop(width, nested, repacking_cpu, shards, tiny_model_dir, tmp_path):
    """Through the isolation check, evaluations and saves."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "head_dim": width // 4}
    base = tiny_model_dir("llama", **sizes, initializer_range=0.1)
    options = {**LORA, **NF4, "use_bnb_nested_quant": nested, "sample_prompts": 0}
    options |= {"data": str(shards), "model_name_or_path": str(base), "seed": SEED, "learning_rate": LEARNING_RATE}
    options |= {"num_train_epochs": STEPS, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    got = train_here(tmp_path, **options)
    expected = train_plainly(adapted(base, quantization_config=nf4(nested)), shards, STEPS, adamw)
    assert_equal_training(got, expected, loss=5e-4, norm=2e-2)
