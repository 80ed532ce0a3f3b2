"""The weights of an export: copied, rebuilt from the parts of ZeRO-3 or FSDP2, or LoRA merged into its base.

Every way ends in safetensors that plain `AutoModelForCausalLM` loads, in the dtype that the checkpoint has.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint.shard_files import MODEL, holds_sharded_model, read_model
from train.checkpoint.tied_weights import drop_copies_in_files
from train.run.atomic_files import write_json_atomically
from train.serving import adapters
from train.serving.adapters import ADAPTER_WEIGHTS, Base, Score
from train.serving.older_readers import with_old_config_names

if TYPE_CHECKING:
    import torch


def write_weights(source: Path, folder: Path, base: Base | None, score: Score, *, keep_adapter: bool) -> str:
    """Write config and weights of the checkpoint `source` into `folder`.

    Args:
        base: of a LoRA checkpoint, its base model.
        score: is called with the model as it was trained; at most one model is in memory at a time.
        keep_adapter: leave a LoRA adapter as it is, to be loaded over its base.

    Returns:
        In words, what was done.

    Raises:
        ValueError: there are no weights of a kind known here, or they do not fit.
    """
    if base:
        write = adapters.keep_adapter if keep_adapter else adapters.merge_adapter
        how = write(source, folder, base, score)
        if not keep_adapter:
            _finish_config(folder / "config.json")
        return how
    if list(source.glob("model*.safetensors")):
        return _copy_model(source, folder, score)
    if holds_sharded_model(source):
        return _rebuild_model(source, folder, score, read_model(source), "rebuilt from FSDP2 shards")
    return _rebuild_model(source, folder, score, _zero_state_dict(source), "rebuilt from ZeRO partitions")


def _check_token_rows(tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer with tokens that the model has no row for, unless they are special ones that no chat uses (the
    text-only Gemma 3 has one for images)."""
    special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    beyond = [i for i in tokenizer.get_vocab().values() if i >= rows]
    if any(i not in special or i in used or special[i] in (tokenizer.chat_template or "") for i in beyond):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model rows for {rows}: they do not belong together"
        )


def check_loads(folder: Path, score: Score, **arguments: Any) -> None:
    """Load `folder` with plain AutoModelForCausalLM; files and model agree in every name and shape.

    Args:
        score: is called with the loaded model.
        arguments: of `from_pretrained`, for an adapter whose base model is not to be loaded as its files are.

    Raises:
        ValueError: a parameter is missing, has no place, has another shape, or holds NaN or infinity; the tokenizer
            has ids that the model has no row for.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = {"dtype": "auto", **arguments}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: another shape
        raise ValueError(f"{folder}: the export does not load: {error}") from None
    model, info = loaded
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"{folder}: the export does not load cleanly: {wrong}")
    _check_token_rows(AutoTokenizer.from_pretrained(folder), model.get_input_embeddings().weight.shape[0])
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"{folder}: {name} holds NaN or infinity: the training diverged; export an older checkpoint"
            )
    score(model)


def _copy_model(source: Path, folder: Path, score: Score) -> str:
    from transformers import AutoModelForCausalLM

    for path in [*source.glob("model*.safetensors"), *source.glob("model*.safetensors.index.json")]:
        shutil.copyfile(path, folder / path.name)
    _copy_configs(source, folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{source}: the model does not load: {error}") from None
    score(model)
    drop_copies_in_files(folder, model)
    return "copied"


def _rebuild_model(source: Path, folder: Path, score: Score, state: dict[str, torch.Tensor], how: str) -> str:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    # Without memory for weights: it takes those rebuilt, and knows which are tied and how names are written.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    _check_names(source, state, model.state_dict())
    model.load_state_dict(state, assign=True)
    state.clear()
    model.tie_weights()
    score(model)
    model.save_pretrained(folder)
    _copy_configs(source, folder)
    return how


def _zero_state_dict(source: Path) -> dict[str, torch.Tensor]:
    """The full state dict of the partitions of all processes, by DeepSpeed's own tool, in the dtype of the model."""
    tag = source / "latest"
    if not tag.exists():
        raise ValueError(
            f"{source}: expected weights (model.safetensors, {ADAPTER_WEIGHTS}, {MODEL}, or DeepSpeed partitions in "
            "the folder that a file `latest` names), found none"
        )
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint, to_torch_tensor
    from transformers import AutoConfig

    # Lazy: each tensor is put together and cast in turn, so fp32 of the whole model is never in memory.
    lazy = get_fp32_state_dict_from_zero_checkpoint(str(source), lazy_mode=True)
    return to_torch_tensor(lazy, dtype=AutoConfig.from_pretrained(source).dtype or torch.float32)


def _check_names(source: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(f"{source}: the partitions do not fit the model: missing {missing[:5]}, unknown {extra[:5]}")


def _copy_configs(source: Path, folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    _finish_config(folder / "config.json")


def _finish_config(path: Path) -> None:
    """Add the names that older programs know, and switch the cache on: gradient checkpointing switches it off, and
    generation without it is many times slower."""
    config = with_old_config_names(json.loads(path.read_text(encoding="utf-8")))
    config.pop("_name_or_path", None)  # a path of the training machine
    if config.get("use_cache") is False:
        config["use_cache"] = True
    write_json_atomically(path, config)
