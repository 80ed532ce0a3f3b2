"""What preflight says of a model's template and of its tokens' rows, for the model alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from train.memory.model_page import _template

END = 3  # the id of <|im_end|>
HEAD = "lm_head.weight"


@pytest.fixture
def model(tmp_path, tiny_tokenizer):
    """Write a model: its tokenizer, two matrices, and a template other than the tokenizer's own."""

    def write(template: str | None = None, untrained: bool = False, weights: bool = True) -> str:
        folder = tmp_path / "model"
        shutil.copytree(Path(tiny_tokenizer.name_or_path), folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        settings = {"vocab_size": 640, "tie_word_embeddings": False, "model_type": "qwen3"}
        (folder / "config.json").write_text(json.dumps(settings))
        random = torch.Generator().manual_seed(0)
        names = ("model.embed_tokens.weight", HEAD)
        matrices = {name: torch.randn(640, 32, generator=random) for name in names}
        if untrained:
            matrices[HEAD][END] = 1e-9
        if weights:
            save_file(matrices, folder / "model.safetensors")
        return str(folder)

    return write


def page(model: str) -> str:
    return "\n".join(_template(model))


def test_a_template_that_can_be_trained_on(model):
    out = page(model())
    assert "template     its own can be trained on (tried on a probe conversation: the tokenizer)" in out
    assert "token rows   those of the template's control tokens are trained" in out


def test_rows_of_control_tokens_that_were_never_trained(model):
    out = page(model(untrained=True))
    assert "token rows   UNTRAINED in lm_head: '<|im_end|>' is near zero" in out
    assert "lora_modules_to_save" in out


def test_a_template_that_cannot_has_its_reason(model):
    silent = "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    out = page(model(silent, untrained=True))
    assert "template     its own, which cannot be trained on: " in out
    assert "name another one in the recipe: " in out
    assert "UNTRAINED in lm_head: '<|im_end|>'" in out  # the tokenizer's own end


def test_no_template(model, tmp_path):
    folder = model()
    (tmp_path / "model" / "chat_template.jinja").unlink()
    assert page(folder).startswith("template     none: name one in the recipe")


def test_what_is_not_here_is_said(model, tmp_path):
    assert "token rows   not looked at: " in page(model(weights=False))
    assert "template     not known: tokenizer" in page(str(tmp_path / "nowhere"))
