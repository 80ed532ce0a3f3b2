"""Checks a model's files against the shards and the run config. Reads JSON and Arrow, never the weights."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.shards import SPLITS, TOKENIZER_DIR, Manifest, read_manifest, shard_files
from train.config.run_config import RunConfig
from train.model.attention import problems_of_layers, problems_of_name
from train.model.sequence_limits import problems_of_parts

# Optimizers that need a package of their own: part of the name -> package.
_OPTIMIZER_PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "grokadamw": "grokadamw",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "anyprecision": "torchdistx",
}
_BITSANDBYTES = ("8bit", "paged_", "bnb", "lion", "ademamix")  # in the names of its optimizers
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # how many, by the names in config.json
ADDED_ROWS = "packhaul_added_rows.json"  # train.add_tokens leaves it next to a model that it added rows to
# The share of the shards' tokens that the model's tokenizer must have. A tokenizer that only adds tokens stays above
# it; one of another family falls far below.
_LEAST_SHARED = 0.5


def model_file(config: RunConfig, name: str) -> Path | None:
    """A file of the model, from its local folder or from the hub cache; None if neither has it. Never downloads."""
    model = str(config.value("model_name_or_path"))
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    if not _may_be_hub_id(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name, revision=config.value("model_revision"))
    return Path(found) if isinstance(found, str) else None


def text_settings(config: RunConfig) -> dict[str, Any] | None:
    """The config.json of the language model; None where it is not here, or damaged, which `check_model` reports."""
    path = model_file(config, "config.json")
    try:
        settings = _read_object(path) if path else None
    except ValueError:
        return None
    return settings and settings | (settings.get("text_config") or {})


def number_of_experts(text: Mapping[str, Any]) -> int:
    """Of each layer that has some, by the language model's config.json; 0 where it names none."""
    return next((int(text[key]) for key in _EXPERTS if text.get(key)), 0)


def _may_be_hub_id(model: str) -> bool:
    return model.count("/") <= 1 and not model.startswith((".", "/", "~", "$"))


def check_model(config: RunConfig, manifest: Manifest | None) -> Iterator[str]:
    """What is wrong with the model, in itself and, given a manifest, for these shards."""
    yield from _check_attention(config, manifest)
    yield from _check_packages(config)
    yield from _check_folder(config)
    path = model_file(config, "config.json")
    if path is None or manifest is None:
        return
    try:
        settings = _read_object(path)
    except ValueError as error:
        yield str(error)
        return
    text = settings | (settings.get("text_config") or {})
    problems = [*problems_of_layers(text), *problems_of_parts(text, config.own.sequence_parallel)]
    yield from (f"{path}: {problem}" for problem in problems)
    yield from _check_added_rows(settings, config)
    yield from _check_router_loss(text, config)
    yield from _check_positions(path, settings, config, manifest)
    yield from _check_vocabulary(path, settings, config, manifest)


def _check_attention(config: RunConfig, manifest: Manifest | None) -> Iterator[str]:
    rows = max(config.value("per_device_train_batch_size"), config.value("per_device_eval_batch_size"))
    problems = problems_of_name(
        config.value("attn_implementation"),
        bool(config.value("use_cpu")),
        config.precision != "no",
        rows * manifest["seq_len"] if manifest else None,
    )
    yield from (f"attn_implementation: {problem}" for problem in problems)


def _check_packages(config: RunConfig) -> Iterator[str]:
    optim = config.optim
    needed = {
        "peft": config.value("use_peft") and "use_peft",
        "bitsandbytes": _bitsandbytes_option(config),
        "liger_kernel": config.value("use_liger_kernel") and "use_liger_kernel",
    }
    needed |= {package: f"optim {optim}" for part, package in _OPTIMIZER_PACKAGES.items() if part in optim}
    tracked = config.value("report_to")
    needed |= {name: f"report_to {name}" for name in ("wandb", "tensorboard", "mlflow") if name in (tracked or [])}
    for package, option in needed.items():
        if option and importlib.util.find_spec(package) is None:
            yield f"{option}: needs the package {package}, which is not installed: install it, or leave the option out"


def _bitsandbytes_option(config: RunConfig) -> str | None:
    """The option that needs bitsandbytes, if one does."""
    for name in ("load_in_4bit", "load_in_8bit"):
        if config.value(name):
            return name
    optim = config.optim
    return f"optim {optim}" if any(mark in optim for mark in _BITSANDBYTES) and "torch" not in optim else None


def needs_bitsandbytes(config: RunConfig) -> bool:
    """Whether an option does, or the model is quantised already, as far as its files are here."""
    path = model_file(config, "config.json")
    quantised = path is None or "quantization_config" in path.read_text(encoding="utf-8")
    return quantised or _bitsandbytes_option(config) is not None


def _check_folder(config: RunConfig) -> Iterator[str]:
    model = str(config.value("model_name_or_path"))
    folder = Path(model)
    if not folder.is_dir():
        offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
        if not _may_be_hub_id(model):
            yield f"model_name_or_path: expected a model folder, found none at {model}"
        elif offline and model_file(config, "config.json") is None:
            reason = "is no folder here, and not in the hub cache while HF_HUB_OFFLINE is set: download it first"
            yield f"model_name_or_path: {model} {reason} (`hf download {model}`)"
        return
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        yield f"model_name_or_path: {model} holds an adapter, not a model: merge it first with packhaul export"
    elif not (folder / "config.json").exists():
        yield f"model_name_or_path: expected config.json in {model}, found none: give the folder of a saved model"
    elif not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        yield f"model_name_or_path: expected weights (*.safetensors) in {model}, found none: save the model there"
    elif not any(folder.glob("*.safetensors")) and not config.own.allow_pickle:
        yield (
            f"model_name_or_path: the weights in {model} are pickled (*.bin), and loading them can run any code: save "
            "the model as safetensors, or write allow_pickle: true if you trust its author"
        )


def _check_router_loss(text: dict[str, Any], config: RunConfig) -> Iterator[str]:
    """With label smoothing, TRL drops the loss that balances a mixture's experts; and padding counts in that loss."""
    asked = config.value("router_aux_loss_coef")
    coefficient = text.get("router_aux_loss_coef", 0.0) if asked is None else asked
    if coefficient and isinstance(multiple := config.value("pad_to_multiple_of"), int) and multiple > 1:
        yield (
            f"pad_to_multiple_of: the experts' balancing loss (router_aux_loss_coef {coefficient}) would count "
            "padding: write router_aux_loss_coef: 0.0, or leave pad_to_multiple_of out"
        )
    if coefficient and config.own.sequence_parallel > 1:
        yield (
            f"sequence_parallel: the experts' balancing loss (router_aux_loss_coef {coefficient}) would be that "
            "of each part of a row by itself, and would count filler: write router_aux_loss_coef: 0.0"
        )
    if config.value("label_smoothing_factor") and coefficient:
        yield (
            f"label_smoothing_factor: the experts' balancing loss (router_aux_loss_coef {coefficient}) would "
            "silently be left out: write router_aux_loss_coef: 0.0, or no label smoothing"
        )


def _check_added_rows(settings: dict[str, Any], config: RunConfig) -> Iterator[str]:
    """New rows hold nothing yet: adapters on the other layers would leave them as they are."""
    if not config.value("use_peft") or model_file(config, ADDED_ROWS) is None:
        return
    saved = set(config.value("lora_modules_to_save") or ())
    if not {"embed_tokens", "lm_head"} <= saved:
        yield (
            "lora_modules_to_save: this model has rows for new tokens, which the adapters alone would never train: "
            "write [embed_tokens, lm_head], or train all weights (use_peft: false)"
        )
    if settings.get("tie_word_embeddings", True):
        yield (
            "use_peft: this model has rows for new tokens in one matrix for embeddings and head, which adapters cannot "
            "train as one: make it again with packhaul add-tokens --untie, or train all weights"
        )


def _check_positions(path: Path, settings: dict[str, Any], config: RunConfig, manifest: Manifest) -> Iterator[str]:
    limit = _text_setting(settings, "max_position_embeddings")
    if not isinstance(limit, int) or manifest["seq_len"] <= limit:
        return
    longest = _largest(config.own.data, "seq_lengths")  # positions start again with each document of a row
    if longest > limit:
        yield (
            f"{path}: max_position_embeddings is {limit:,}, the longest document of {config.own.data} has {longest:,} "
            f"tokens: prepare the data with seq_len {limit}, or use a model with a longer context"
        )


def _check_vocabulary(path: Path, settings: dict[str, Any], config: RunConfig, manifest: Manifest) -> Iterator[str]:
    size = _text_setting(settings, "vocab_size")
    # A tokenizer may name ids without an embedding (Gemma 3's image token in a text-only model): count those used.
    if isinstance(size, int) and manifest["tokenizer"]["size"] > size:
        largest = _largest(config.own.data, "input_ids")
        if largest >= size:
            yield (
                f"{path}: vocab_size is {size:,}, the shards hold token id {largest:,}: they were made with "
                "another tokenizer than the model's; prepare the data with the model's tokenizer, or, if the template "
                "needs tokens that the model does not have, give it rows for them: packhaul add-tokens"
            )
    own, theirs = Path(config.own.data) / TOKENIZER_DIR / "tokenizer.json", model_file(config, "tokenizer.json")
    if theirs is None or not own.exists() or own.read_bytes() == theirs.read_bytes():
        return
    try:
        difference = _tokenizer_difference(_vocabulary(own), _vocabulary(theirs))
    except ValueError as error:
        yield str(error)
        return
    if difference:
        yield (
            f"{own}: the shards were made with another tokenizer than the model's ({theirs}): {difference}; prepare "
            "the data with the model's tokenizer, or one of the same vocabulary"
        )


def model_notes(config: RunConfig, *, sharded: bool) -> Iterator[str]:
    """What is allowed but should be known.

    Args:
        sharded: whether DeepSpeed keeps the weights that are updated, always in fp32.
    """
    model, dtype = str(config.value("model_name_or_path")), config.value("dtype")
    if not Path(model).is_dir() and _may_be_hub_id(model) and model_file(config, "config.json") is None:
        yield f"{model} is not on this machine: it is not checked against the shards before the start"
    if config.value("trust_remote_code"):
        yield "trust_remote_code is on: code from the model's repository runs with your rights"
    if not sharded and not config.value("use_peft") and dtype in ("bfloat16", "float16"):
        yield f"dtype {dtype} without DeepSpeed: small updates to {dtype} weights are rounded away; use dtype: float32"


def expert_notes(config: RunConfig) -> Iterator[str]:
    """About a mixture of experts with fp32 weights under autocast alone; DeepSpeed and FSDP would cast them.

    transformers multiplies all experts in one call, `grouped_mm`, in the dtype of their weights: autocast does not
    cover it.
    """
    path = model_file(config, "config.json")
    mixed = config.precision != "no" and not config.value("use_cpu")
    if path is None or not mixed or config.own.bf16_copies:
        return
    if config.value("dtype") not in (None, "float32", "auto"):
        return
    text = text_settings(config) or {}
    dtype = text.get("dtype") or text.get("torch_dtype") if config.value("dtype") == "auto" else "float32"
    if dtype == "float32" and number_of_experts(text) > 1:
        remedy = "dtype: bfloat16" if config.value("use_peft") else "bf16_copies: true on one GPU, or ZeRO"
        yield (
            f"the experts' weights are float32, and so are their products, several times slower than {config.precision}"
            f" ones (autocast does not reach them): use {remedy}"
        )


def _tokenizer_difference(shards: dict[str, int], model: dict[str, int]) -> str | None:
    """Why token ids of the shards mean something else to the model; None if its tokenizer gives the same ids."""
    common = [token for token in shards if token in model]
    moved = [token for token in common if shards[token] != model[token]]
    if moved:
        token = moved[0]
        example = f"{token!r} is id {shards[token]} in the shards and {model[token]} in the model"
        return f"{len(moved):,} of {len(common):,} tokens in common have other ids; {example}"
    if len(common) < _LEAST_SHARED * len(shards):
        return f"only {len(common):,} of the shards' {len(shards):,} tokens are tokens of the model"
    return None


def _vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json, added tokens included."""
    content = _read_object(path)
    listed = (content.get("model") or {}).get("vocab") or {}
    tokens = dict(listed) if isinstance(listed, dict) else {entry[0]: i for i, entry in enumerate(listed)}
    return tokens | {added["content"]: added["id"] for added in content.get("added_tokens") or []}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _text_setting(settings: dict[str, Any], key: str) -> Any:
    """A setting of the language model, which a multimodal model's config.json holds one level down."""
    return settings.get(key, (settings.get("text_config") or {}).get(key))


@functools.cache
def _largest(directory: str, column: str) -> int:
    """The largest number in a column over all shards; reads the column once through a memory map."""
    import pyarrow as pa
    import pyarrow.compute as pc

    largest = 0
    manifest: Manifest = read_manifest(directory)
    for file in [f for split in SPLITS for f in shard_files(directory, manifest, split)]:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                largest = max(largest, pc.max(batch.column(column).flatten()).as_py() or 0)
    return largest
