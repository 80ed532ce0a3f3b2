"""The weights of an export: copied, rebuilt from ZeRO-3 partitions, or LoRA merged into its base model.

Every way ends in safetensors that plain `AutoModelForCausalLM` loads, in the dtype that the checkpoint has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint import write_json_atomically

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def write_weights(source: Path, folder: Path, *, base_model: str | None, keep_adapter: bool) -> str:
    """Write config and weights of the checkpoint `source` into `folder`.

    Args:
        base_model: where the adapter's base model is now; None: where adapter_config.json says.
        keep_adapter: leave a LoRA adapter as it is, to be loaded over its base.

    Returns:
        In words, what was done.

    Raises:
        ValueError: there are no weights of a kind known here, or an option does not fit them.
    """
    if (source / ADAPTER_CONFIG).exists():
        if not (source / ADAPTER_WEIGHTS).exists():
            raise ValueError(f"{source}: expected {ADAPTER_WEIGHTS} beside {ADAPTER_CONFIG}, found none")
        base = _base_of(source, base_model)
        return _keep_adapter(source, folder, base) if keep_adapter else _merge_adapter(source, folder, base)
    if keep_adapter or base_model:
        option = "--keep_adapter" if keep_adapter else "--base_model"
        raise ValueError(f"{option} needs a LoRA checkpoint; {source} has no {ADAPTER_CONFIG}: leave the option out")
    if list(source.glob("model*.safetensors")):
        return _copy_model(source, folder)
    return _rebuild_model(source, folder)


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


def check_loads(folder: Path) -> None:
    """Load `folder` with plain AutoModelForCausalLM; files and model agree in every name and shape.

    Raises:
        ValueError: a parameter is missing, has no place, has another shape, or holds NaN or infinity; the tokenizer
            has ids that the model has no row for.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
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


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype as safetensors calls it), from the headers alone."""
    from safetensors import safe_open

    shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                part = file.get_slice(name)
                shapes[name] = (part.get_shape(), part.get_dtype())
    return shapes


def _copy_model(source: Path, folder: Path) -> str:
    for path in [*source.glob("model*.safetensors"), *source.glob("model*.safetensors.index.json")]:
        shutil.copyfile(path, folder / path.name)
    _copy_configs(source, folder)
    return "copied"


def _rebuild_model(source: Path, folder: Path) -> str:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    dtype = config.dtype or torch.float32
    state = _zero_state_dict(source, dtype)
    # A model without memory, for its save_pretrained: it knows which weights are tied and how names are written.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    _check_names(source, state, model.state_dict())
    model.save_pretrained(folder, state_dict=state)
    _copy_configs(source, folder)
    return "rebuilt from ZeRO partitions"


def _merge_adapter(source: Path, folder: Path, base: str) -> str:
    model = _load_adapter(source, base)
    merged = model.merge_and_unload(safe_merge=True)  # refuses NaN
    merged.save_pretrained(folder)
    _use_cache(folder / "config.json")
    return "LoRA adapter merged into its base model"


def _keep_adapter(source: Path, folder: Path, base: str) -> str:
    _load_adapter(source, base)  # refuses what is not whole
    shutil.copyfile(source / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    write_json_atomically(folder / ADAPTER_CONFIG, {**config, "base_model_name_or_path": base})
    if (Path(base) / "generation_config.json").exists():
        shutil.copyfile(Path(base) / "generation_config.json", folder / "generation_config.json")
    return "LoRA adapter, to be loaded over its base model"


def _load_adapter(source: Path, base: str) -> PeftModel:
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    try:
        base_model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    except OSError as error:
        raise ValueError(
            f"the adapter's base model {base} cannot be loaded: say where it is now with --base_model. Found: {error}"
        ) from None
    model = PeftModel.from_pretrained(base_model, source)
    # peft loads a file that lacks some adapters with no more than a warning.
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if missing := sorted(expected - tensor_shapes([source / ADAPTER_WEIGHTS]).keys()):
        raise ValueError(f"{source / ADAPTER_WEIGHTS} lacks {len(missing)} adapter weights, {missing[0]} the first")
    return model


def _zero_state_dict(source: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The full state dict of the partitions of all processes, by DeepSpeed's own tool."""
    tag = source / "latest"
    if not tag.exists():
        raise ValueError(
            f"{source}: expected weights (model.safetensors, {ADAPTER_WEIGHTS}, or DeepSpeed partitions in the folder "
            "that a file `latest` names), found none"
        )
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint, to_torch_tensor

    # Lazy: each tensor is put together and cast in turn, so fp32 of the whole model is never in memory.
    lazy = get_fp32_state_dict_from_zero_checkpoint(str(source), lazy_mode=True)
    return to_torch_tensor(lazy, dtype=dtype)


def _check_names(source: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(f"{source}: the partitions do not fit the model: missing {missing[:5]}, unknown {extra[:5]}")


def _base_of(source: Path, base_model: str | None) -> str:
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = base_model or config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{source / ADAPTER_CONFIG} names no base model: say where it is with --base_model")
    return str(base)


def _copy_configs(source: Path, folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    _use_cache(folder / "config.json")


def _use_cache(path: Path) -> None:
    """Training with gradient checkpointing switches the cache off; generation without it is many times slower."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a path of the training machine
    if config.get("use_cache") is False:
        config["use_cache"] = True
    write_json_atomically(path, config)
