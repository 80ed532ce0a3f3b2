"""The start-up proof: it passes models that keep packed documents apart, and refuses what mixes."""

from __future__ import annotations

import sys

import pytest
import torch
from datasets import Dataset
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask, sdpa_mask
from trl.trainer.utils import add_fused_lm_head

from train.model import documentwise, isolation, mask_positions, varlen

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def registered():
    varlen.register()


class TestIsolation:
    IDS = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()

    def load(self, folder, name: str, dtype=torch.float32):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name, dtype=dtype).train()
        add_fused_lm_head(model)
        return model

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("name", ["varlen", "sdpa", "eager"])
    @pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "mistral", "qwen3_moe"])
    def test_passes(self, architecture, name, dtype, tiny_model_dir):
        model = self.load(tiny_model_dir(architecture), name, dtype)
        state = torch.random.get_rng_state()
        assert "they differ from separate ones by" in isolation.check(model, self.IDS, CPU, dtype)
        assert model.training
        assert torch.equal(state, torch.random.get_rng_state())  # training goes on as if it had not been

    def test_soft_capped_scores(self, tiny_model_dir):
        isolation.check(self.load(tiny_model_dir("gemma2"), "eager"), self.IDS, CPU, torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("broken_layers", [[0, 1], [1]])
    def test_refuses_attention_that_mixes(self, broken_layers, dtype, tiny_model_dir):
        """All layers, or one of two, attend over the whole row."""

        def mixing(module, query, key, value, attention_mask, **kwargs):
            if module.layer_idx in broken_layers:
                attention_mask = None
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

        AttentionInterface.register("mixing", mixing)
        AttentionMaskInterface.register("mixing", sdpa_mask)
        model = self.load(tiny_model_dir("llama"), "mixing", dtype)
        with pytest.raises(ValueError, match="does not keep packed documents apart"):
            isolation.check(model, self.IDS, CPU, dtype)

    def test_refuses_convolutions(self):
        """LFM2: no attention mask cuts a convolution. transformers says so itself, where its kernel is missing."""
        from transformers import Lfm2Config

        sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        config = Lfm2Config(
            **sizes,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
            conv_L_cache=3,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        model.model.layers[0].conv.conv.weight.data.mul_(30)  # as large as trained ones
        add_fused_lm_head(model)
        with pytest.raises(ValueError, match=r"keep packed (documents|sequences) apart"):
            isolation.check(model, self.IDS, CPU, torch.float32)
        assert documentwise.install(model) == {"Lfm2ShortConv": 1}
        isolation.check(model, self.IDS, CPU, torch.float32)

    def test_a_mask_that_is_made_without_positions(self, tiny_model_dir):
        """gpt-oss in transformers 5.23."""
        model = self.load(tiny_model_dir("gpt_oss"), "eager")
        mask_positions.install(model)
        isolation.check(model, self.IDS, CPU, torch.float32)
        whole = torch.tensor([self.IDS])
        with torch.no_grad():  # positions that do not begin again, and those of an earlier pass, change nothing
            assert torch.equal(model(input_ids=whole).logits, self.plain(tiny_model_dir("gpt_oss"))(whole).logits)

    def plain(self, folder):
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)

    def test_refuses_a_mask_without_positions(self, tiny_model_dir, monkeypatch):
        model = self.load(tiny_model_dir("gpt_oss"), "eager")
        module = sys.modules[type(model).__module__]
        for make in (create_causal_mask, create_sliding_window_causal_mask):
            monkeypatch.setattr(module, make.__name__, make)
        with pytest.raises(ValueError, match="does not keep packed documents apart"):
            isolation.check(model, self.IDS, CPU, torch.float32)

    def test_refuses_a_backward_pass_that_mixes(self, tiny_model_dir):
        """The logits are right, the gradients are not."""

        def mixing(module, query, key, value, attention_mask, **kwargs):
            right = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
            wrong = sdpa_attention_forward(module, query, key, value, None, **kwargs)[0]
            return right.detach() + wrong - wrong.detach(), None

        AttentionInterface.register("mixing backwards", mixing)
        AttentionMaskInterface.register("mixing backwards", sdpa_mask)
        model = self.load(tiny_model_dir("llama"), "mixing backwards")
        with pytest.raises(ValueError, match="does not keep packed documents apart"):
            isolation.check(model, self.IDS, CPU, torch.float32)

    def test_no_weight_is_left_with_a_gradient(self, tiny_model_dir):
        model = self.load(tiny_model_dir("llama"), "sdpa")
        isolation.check(model, self.IDS, CPU, torch.float32)
        assert [name for name, weight in model.named_parameters() if weight.grad is not None] == []

    def test_refuses_nan(self, tiny_model_dir):
        model = self.load(tiny_model_dir("llama"), "sdpa")
        model.lm_head.weight.data.fill_(float("nan"))
        with pytest.raises(ValueError, match="does not keep packed documents apart"):
            isolation.check(model, self.IDS, CPU, torch.float32)

    def test_too_few_tokens(self):
        assert "not checked" in isolation.check(None, [1, 2, 3], CPU, torch.float32)

    def test_tokens_come_from_the_first_rows(self):
        rows = Dataset.from_list([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}, {"input_ids": [6]}])
        assert isolation.first_tokens(rows, 4) == [1, 2, 3, 4]
        assert isolation.first_tokens(rows, 9) == [1, 2, 3, 4, 5, 6]
        assert isolation.split(list(range(9))) == [[0, 1], [2, 3, 4, 5, 6], [7, 8]]
