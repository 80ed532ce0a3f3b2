"""The attention that a run would take, chosen without its GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

from train.memory.setting import Setting
from train.model import attention

# Of the GPU assumed where none is seen: Hopper. The choice is the same for Ampere and Blackwell but for the names of
# flash attention's packages.
_CAPABILITY = (9, 0)


def chosen(setting: Setting, model_config: Any, asked: str | None) -> tuple[Setting, str]:
    """The setting with its attention, and why that one.

    Raises:
        ValueError: none works for this model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    capability = _CAPABILITY if setting.on_gpu else (0, 0)
    if setting.on_gpu and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
    found = attention.Setting(
        use_cpu=not setting.on_gpu,
        half=setting.precision != "no",
        batch_tokens=setting.rows * setting.seq_len,
        model_class=AutoModelForCausalLM._model_mapping.get(type(model_config), None),
        config=model_config.get_text_config(),
        capability=capability,
    )
    name, reason = attention.choose(asked, found) if setting.row_ranks == 1 else (attention.VARLEN, "parts of rows")
    return dataclasses.replace(setting, attention=name), reason
