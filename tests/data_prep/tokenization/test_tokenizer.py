"""data_prep.tokenization.tokenizer: which tokenizers are refused."""

from __future__ import annotations

import json
import shutil

import pytest

from data_prep.tokenization.tokenizer import load_tokenizer


@pytest.mark.parametrize("value", [True, False])
def test_one_that_takes_control_tokens_for_text_is_refused(value, tiny_tokenizer, tmp_path):
    folder = shutil.copytree(tiny_tokenizer.name_or_path, tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "split_special_tokens": value}))
    if value:
        with pytest.raises(ValueError, match=r"says split_special_tokens: true, .*: remove it there, in a copy"):
            load_tokenizer(str(folder))
    else:
        assert load_tokenizer(str(folder))("<|im_end|>")["input_ids"] == [tiny_tokenizer.eos_token_id]
