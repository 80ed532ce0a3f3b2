"""Which attention is chosen and why; `varlen` in generation; the start-up proof, and that it refuses what mixes."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssForCausalLM,
    LlamaForCausalLM,
)

from tests.support.attention_settings import setting
from train.model import attention, hub_kernels, varlen
from train.model.attention import FLASH, choose, problems_of_layers, problems_of_name

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def registered():
    varlen.register()


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these packages and no others are installed."""

    def install(*names: str) -> None:
        monkeypatch.setattr(attention, "has_distribution", lambda name: name in names)

    install()
    return install


ALL = [package for package, _ in FLASH.values()]


class TestChoice:
    @pytest.mark.parametrize(
        ("packages", "changes", "name"),
        [
            (ALL, {}, "flash_attention_3"),
            (ALL, {"capability": (10, 0)}, "flash_attention_4"),
            (ALL, {"capability": (8, 0)}, "flash_attention_2"),
            (ALL, {"compatible": ["flash_attention_4"]}, "flash_attention_4"),
            (["flash-attn"], {}, "flash_attention_2"),
            (ALL, {"half": False}, "flex_attention"),  # flash kernels take half precision only
            (ALL, {"capability": (7, 5)}, "flex_attention"),
            (ALL, {"use_cpu": True, "half": False}, "varlen"),
            ([], {}, "varlen"),
            ([], {"config": {"attention_dropout": 0.1}}, "flex_attention"),
            ([], {"config": {"head_dim": 260}}, "flex_attention"),
            ([], {"config": {"head_dim": 100}}, "flex_attention"),
            ([], {"flags": {"_supports_sdpa": False}}, "flex_attention"),
            ([], {"flags": {"_supports_attention_backend": False, "_supports_flex_attn": False}}, "sdpa"),
            ([], {"use_cpu": True, "flags": {"_supports_sdpa": False}}, "eager"),
        ],
    )
    def test_auto(self, installed, packages, changes, name):
        installed(*packages)
        chosen, why = choose("auto", setting(**changes))
        assert chosen == name
        assert choose(None, setting(**changes)) == (chosen, why)
        better = attention._PREFERRED[: attention._PREFERRED.index(name)]
        assert all(f"{other}: " in why for other in better)  # why not what comes before it

    @pytest.mark.parametrize("name", ["flash_attention_2", "varlen", "flex_attention", "sdpa", "eager"])
    def test_by_name(self, installed, name):
        installed("flash-attn")
        assert choose(name, setting())[0] == name

    @pytest.mark.parametrize(
        ("name", "changes", "reason"),
        [
            ("flash_attention_2", {}, "flash-attn is not installed"),
            ("varlen", {"half": False}, "needs bf16 or fp16"),
            ("varlen", {"config": {"attention_dropout": 0.1}}, "no dropout"),
            ("flex_attention", {"use_cpu": True}, "no backward pass on a CPU"),
            ("sdpa", {"batch_tokens": 100_000}, "would need 27.9 GiB for 100,000 tokens"),
            ("eager", {"batch_tokens": 32_768}, "eager would need"),
        ],
    )
    def test_by_name_but_not_here(self, installed, name, changes, reason):
        with pytest.raises(ValueError, match=f"attn_implementation {name}: .*{reason}"):
            choose(name, setting(**changes))

    def test_a_kernel_of_an_older_torch(self, installed, monkeypatch):
        """The first one, of torch 2.10: it has no scale and no windows."""

        def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
            pass

        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
        name, why = choose("auto", setting())
        assert name == "flex_attention"
        assert "varlen: the kernel of this torch takes no scale, window_size: upgrade torch" in why

    def test_a_kernel_without_gradients_for_sinks(self, installed, monkeypatch):
        """GPT-OSS names this kernel as compatible; it is, but for training."""
        name = "kernels-community/vllm-flash-attn3"
        for found in ("missing", "unusable"):
            monkeypatch.setattr(hub_kernels, found, lambda name: None)
        monkeypatch.setattr(hub_kernels, "describe", lambda name: "fetched")
        assert name in GptOssForCausalLM._compatible_flash_implementations
        with pytest.raises(ValueError, match="no backward pass for attention sinks, which the model has"):
            choose(name, setting(model_class=GptOssForCausalLM))
        assert choose(name, setting(model_class=LlamaForCausalLM))[0] == name
        assert choose("auto", setting(model_class=GptOssForCausalLM))[0] == "flash_attention_4"

    def test_quadratic_memory_is_a_warning(self):
        assert "WARNING: needs 0.75 GiB for 16,384 tokens" in choose("sdpa", setting(batch_tokens=16_384))[1]

    def test_nothing_fits(self, installed):
        flags = dict.fromkeys(["_supports_sdpa", "_supports_flex_attn"], False)
        with pytest.raises(ValueError, match="no attention implementation keeps packed documents apart here"):
            choose("auto", setting(flags=flags, batch_tokens=100_000))


class TestWithoutTorch:
    @pytest.mark.parametrize(
        ("asked", "use_cpu", "half", "tokens", "words"),
        [
            (
                "flash_attention_2",
                False,
                True,
                None,
                "flash_attention_2: flash-attn is not installed; 'kernels>=",
            ),
            ("flash_attention_3", True, True, None, "needs a GPU"),
            ("linear", False, True, None, "is not known to keep packed documents apart"),
            ("varlen", False, False, None, "needs bf16 or fp16"),
            ("flex_attention", True, False, None, "no backward pass on a CPU"),
            ("sdpa", False, True, 200_000, "sdpa would need"),
        ],
    )
    def test_a_name_that_cannot_work(self, installed, asked, use_cpu, half, tokens, words):
        assert words in "".join(problems_of_name(asked, use_cpu, half, tokens))

    def test_half_precision_for_flash(self, installed):
        installed("flash-attn")
        assert "needs bf16 or fp16" in "".join(problems_of_name("flash_attention_2", False, False, None))

    @pytest.mark.parametrize("asked", [None, "auto", "varlen", "sdpa", "eager"])
    def test_names_that_can(self, asked):
        assert list(problems_of_name(asked, True, False, 8192)) == []

    def test_torch_is_too_old(self, monkeypatch):
        monkeypatch.setattr("importlib.metadata.version", lambda name: "2.10.1")
        assert "needs torch >= 2.11, found 2.10" in "".join(problems_of_name("varlen", False, True, None))

    def test_layers_that_cut_by_place_are_refused_by_name(self):
        settings = {"model_type": "llama4_text", "layer_types": ["chunked_attention", "full_attention"]}
        assert "llama4_text has chunked_attention" in "".join(problems_of_layers(settings))

    def test_others_are_left_to_the_proof(self):
        for kinds in (["full_attention", "sliding_attention"], ["linear_attention"], ["conv"], None):
            assert list(problems_of_layers({"model_type": "any", "layer_types": kinds})) == []


class TestVarlen:
    def load(self, folder, name: str, **kwargs):
        return AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=name, dtype=torch.float32, **kwargs
        ).eval()

    @pytest.mark.parametrize("architecture", ["llama", "gemma3"])
    def test_generation_and_padding_equal_sdpa(self, architecture, tiny_model_dir):
        """With a cache, without one, and for a batch with padding on the left, longer than the sliding window."""
        ids = torch.randint(4, 260, (2, 20), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        found = []
        for name in ("varlen", "sdpa"):
            model = self.load(tiny_model_dir(architecture), name)
            kwargs = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
            with torch.no_grad():
                one = model.generate(ids[1:], **kwargs)
                padded = model.generate(ids, attention_mask=mask, **kwargs)
                found.append([*one.logits, *padded.logits, model(ids, use_cache=False).logits])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_documents_are_found_by_position_if_their_ends_are_not_given(self, tiny_model_dir):
        model = self.load(tiny_model_dir("llama"), "varlen")
        documents = [list(range(4, 24)), list(range(30, 44))]
        packed = torch.tensor([[*documents[0], *documents[1]]])
        positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
        with torch.no_grad():
            got = model(packed, position_ids=positions, use_cache=False).logits[0]
            expected = torch.cat([model(torch.tensor([d]), use_cache=False).logits[0] for d in documents])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_dropout_drops_within_documents(self, tiny_model_dir):
        model = self.load(tiny_model_dir("llama"), "varlen", attention_dropout=0.5).train()
        ids = torch.arange(4, 24)[None]
        assert not torch.equal(model(ids, use_cache=False).logits, model(ids, use_cache=False).logits)

    def test_what_it_cannot_do_is_refused(self, tiny_model_dir):
        q = torch.zeros(1, 2, 4, 8)
        for more, words in (
            ({"softcap": 50.0}, "softcap"),
            ({"is_causal": False}, "non-causal"),
            ({"s_aux": q}, "s_aux"),
        ):
            with pytest.raises(ValueError, match=words):
                varlen.varlen_forward(torch.nn.Module(), q, q, q, None, **more)
        ends = torch.tensor([0, 2, 4], dtype=torch.int32)
        with pytest.raises(ValueError, match="expected one row of packed documents, found a batch of 2"):
            varlen.varlen_forward(torch.nn.Module(), *[torch.zeros(2, 2, 4, 8)] * 3, None, cu_seq_lens_q=ends)
