"""What the padding of document groups costs a hybrid model, by account: part of tests/benchmarks/roofline.py.

Layers with a state compute each group of documents of like length as a padded batch (train/model/documentwise.py). A
kernel that takes the documents' bounds computes no padding. The difference is counted in matrix products, which padding
multiplies like all else that such a layer does; the recurrence itself is counted for neither way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "support" / "model_configs"
SHAPE = "Qwen--Qwen3.5-9B"
DOCUMENTS = 20_000


def account(seq_len: int, products: float) -> dict[str, Any]:
    """Of full fine-tuning, for one row of `seq_len` tokens.

    Args:
        products: operations a second of a device, in matrix products.

    Returns:
        `padding` (of the tokens that stateful layers compute), `calls` a row; `layer_products_ms` of all layers by
        kernels with bounds and `groups_add_ms`; `groups_add`, as a part of the layers' products.
    """
    padding, calls = padding_of(seq_len)
    stateful, all_layers = layer_weights()
    bounds = 1000 * 6 * all_layers * seq_len / products
    added = 1000 * 6 * stateful * seq_len / products * padding / (1 - padding)
    return {
        "shape": SHAPE,
        "padding": round(padding, 4),
        "calls": round(calls, 2),
        "stateful_weights": round(stateful / all_layers, 4),
        "layer_products_ms": round(bounds, 1),
        "groups_add_ms": round(added, 1),
        "groups_add": round(added / bounds, 4),
    }


def padding_of(seq_len: int) -> tuple[float, float]:
    """Padding as a part of what is computed, and calls of a layer, of packed rows with Alpaca's lengths."""
    from tests.benchmarks.gpu_inputs import make_documents, pack_documents
    from train.model.documentwise import groups

    lengths = [len(ids) for ids, _ in make_documents(DOCUMENTS, 1000, seq_len)]
    rows = [[lengths[i] for i in row] for row in pack_documents(lengths, seq_len)]
    found = [(row, groups(row)) for row in rows]
    computed = sum(row[group[0]] * len(group) for row, grouped in found for group in grouped)
    return 1 - sum(lengths) / computed, sum(len(grouped) for _, grouped in found) / len(found)


def layer_weights() -> tuple[int, int]:
    """Elements of the matrices in layers with a state, and of all layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from train.model.documentwise import mixers

    settings = json.loads((CONFIGS / f"{SHAPE}.json").read_text())["text_config"]
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stateful = [module for mixer in mixers(model).values() for module in mixer.modules()]
    return _elements(stateful), _elements(list(model.base_model.modules()))


def _elements(modules: list[Any]) -> int:
    import torch

    return sum(module.weight.numel() for module in modules if isinstance(module, torch.nn.Linear))
