"""Makes `torch_compile` compile one layer, whose code all layers share, unless the user says otherwise.

The whole model is traced three times, as TRL's fused head breaks the graph, and again for each new length of a row.
accelerate compiles by layer if its plugin says so; transformers makes the plugin from the environment.
"""

from __future__ import annotations

import os

_PREFIX = "ACCELERATE_DYNAMO_"
_REGIONAL = f"{_PREFIX}USE_REGIONAL_COMPILATION"


def compile_layers_by_default() -> None:
    """Call it before the trainer is made. What the user sets in the environment holds.

    `accelerate launch` writes all of these variables itself, with its parser's defaults where its file has no
    dynamo_config: no backend, not by layer, no dynamic shapes. These are not the user's choices. With
    them, every new number of documents in a row would be compiled again.
    """
    if os.environ.get(f"{_PREFIX}BACKEND", "").upper() == "NO":
        for name in (_REGIONAL, f"{_PREFIX}USE_DYNAMIC"):
            if os.environ.get(name) == "False":
                del os.environ[name]
    os.environ.setdefault(_REGIONAL, "true")
