"""New tokens get rows, which are trained and saved: with all weights, and next to adapters; or the run is refused."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from tests.support.in_process import assert_equal_training, assert_equal_weights, train_here, train_plainly
from tests.support.training import make_shards
from train.add_tokens import add_tokens, main
from train.config.run_config import load_run_config
from train.preflight import check

ROWS = 500  # of the base model; the tokenizer has more
LORA = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
}
WHOLE = ["embed_tokens", "lm_head"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("added")
    return make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 12, "long": [6, 6]})


@pytest.fixture(scope="module")
def larger(shards, tiny_model_dir, tmp_path_factory):
    """A model with rows for all tokens, of a tied one without."""
    output = tmp_path_factory.mktemp("larger") / "model"
    base = tiny_model_dir("llama", vocab_size=ROWS, tie_word_embeddings=True)
    arguments = ["--model", str(base), "--data", str(shards), "--output", str(output)]
    assert main([*arguments, "--untie"]) == 0
    assert main(arguments) == 2  # the folder is there now
    return base, output


def load(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **kwargs)


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)


def options(shards, model, **more):
    plan = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 7}
    return {"data": str(shards), "model_name_or_path": str(model), **plan, **more}


def test_old_rows_stay_and_new_ones_are_near_their_mean(larger, shards, tmp_path):
    base, output = (load(folder) for folder in larger)
    old, new = base.get_input_embeddings().weight, output.get_input_embeddings().weight
    assert len(new) >= ROWS + 1 and len(new) % 64 == 0
    for matrix in (new, output.get_output_embeddings().weight):
        assert torch.equal(matrix[:ROWS], old)
        torch.testing.assert_close(matrix[ROWS:].mean(0), old.mean(0), rtol=0, atol=0.02)
    assert new.data_ptr() != output.get_output_embeddings().weight.data_ptr()
    ids = torch.arange(4, 30)[None]
    torch.testing.assert_close(output(ids).logits[..., :ROWS], base(ids).logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="there is nothing to add"):
        add_tokens(str(larger[1]), shards, tmp_path / "again")


def test_full_fine_tuning_trains_them(larger, shards, tmp_path):
    got = train_here(tmp_path, **options(shards, larger[1]))
    expected = train_plainly(load(larger[1]), shards, 3, adamw)
    assert_equal_training(got, expected, loss=1e-5, norm=1e-4)
    trained = load(tmp_path / "run").state_dict()
    assert_equal_weights(trained, expected.model.state_dict(), atol=2e-4)
    changed = (trained["lm_head.weight"] != load(larger[1]).lm_head.weight).any(-1)
    assert changed[ROWS:].any()


def test_they_are_trained_and_saved_beside_adapters(larger, shards, tmp_path):
    got = train_here(tmp_path, **options(shards, larger[1], **LORA, lora_modules_to_save=WHOLE))
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": LORA["lora_target_modules"]}
    set_seed(7)
    model = get_peft_model(load(larger[1]), LoraConfig(**settings, modules_to_save=WHOLE, task_type="CAUSAL_LM"))
    expected = train_plainly(model, shards, 3, adamw)
    assert_equal_training(got, expected, loss=1e-5, norm=1e-4)
    merged = PeftModel.from_pretrained(load(larger[1]), tmp_path / "run").merge_and_unload()
    assert_equal_weights(merged.state_dict(), expected.model.merge_and_unload().state_dict(), atol=2e-4)


def flags(shards, model, run, *more):
    base = ["--data", str(shards), "--model_name_or_path", str(model), "--output_dir", str(run)]
    return "\n".join(check(load_run_config([*base, "--use_cpu", "--bf16", "false", *more])))


def test_what_would_not_train_them_is_refused(larger, shards, tiny_model_dir, tmp_path):
    found = flags(shards, larger[0], tmp_path)
    assert "give it rows for them: packhaul add-tokens" in found
    assert flags(shards, larger[1], tmp_path) == ""
    lora = ["--use_peft", "--lora_target_modules", "q_proj"]
    assert "write [embed_tokens, lm_head]" in flags(shards, larger[1], tmp_path, *lora)
    assert flags(shards, larger[1], tmp_path, *lora, "--lora_modules_to_save", *WHOLE) == ""
    add_tokens(str(larger[0]), shards, tmp_path / "tied")
    assert "packhaul add-tokens --untie" in flags(shards, tmp_path / "tied", tmp_path, *lora)
