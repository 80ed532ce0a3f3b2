"""Describes what `torch_compile` compiles of a model, and lets single calls run uncompiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def describe(plugin: Any, model: Any) -> str | None:
    """A line that says what is compiled; None if nothing is.

    Args:
        plugin: accelerate's TorchDynamoPlugin.
        model: before it is compiled.
    """
    if plugin.backend.value == "NO":
        return None
    blocks = _repeated_blocks(model) if plugin.use_regional_compilation else []
    what = ", ".join(f"one {kind} for {count}" for kind, count in blocks)
    mode = "" if plugin.mode in (None, "default") else f", {plugin.mode}"
    return f"torch.compile ({plugin.backend.value.lower()}{mode}): {what or 'the whole model'}"


def _repeated_blocks(model: Any) -> list[tuple[str, int]]:
    """(class, how many) of the lists of blocks that accelerate compiles; not of those within a block."""
    from accelerate.utils.other import is_repeated_blocks

    lists = {name: module for name, module in model.named_modules() if is_repeated_blocks(module)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [(type(lists[name][0]).__name__, len(lists[name])) for name in outer]


def eagerly(plugin: Any) -> AbstractContextManager[Any]:
    """A context in which what `torch_compile` compiles runs uncompiled. torch keeps 8 versions of a layer; a few calls
    with other lengths would use them up, and training would silently go on uncompiled. Without `torch_compile` nothing
    changes, so that flex_attention, which compiles itself, is checked as it trains."""
    if plugin.backend.value == "NO":
        return nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")
