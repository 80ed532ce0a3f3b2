"""How the model is loaded: attention, dtype, safe weights, quantised layout; and a row for every token id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_prep.shards import Manifest
from train.model import attention
from train.model.sequence_limits import problems_of_parts

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig


def prepare_model_arguments(
    model_config: ModelConfig,
    args: SFTConfig,
    asked_dtype: str | None,
    seq_len: int,
    *,
    allow_pickle: bool = False,
    row_ranks: int = 1,
) -> str:
    """Set `args.model_init_kwargs` as TRL's own script does; returns the attention implementation and the reason.

    Args:
        asked_dtype: the run config's `dtype`, if given.
        seq_len: most tokens of a packed row.
        allow_pickle: load pickled weights where there are no others.
        row_ranks: number of ranks that hold parts of the same rows.

    Raises:
        ValueError: the attention asked for does not work here, the model's layers cannot be packed or cannot have parts
            of rows, or the GPU has no bf16.
    """
    given: Any = args.model_init_kwargs or {}  # a mapping: SFTConfig has read it if it was JSON text
    kwargs = {**given, "revision": model_config.model_revision}
    setting = _attention_setting(model_config, args, kwargs, seq_len, row_ranks)
    name, reason = _choose_attention(model_config.attn_implementation, setting, row_ranks)
    if name == attention.VARLEN:
        from train.model.varlen import register

        register()
    args.model_init_kwargs = {**kwargs, "attn_implementation": name, "dtype": asked_dtype or model_config.dtype}
    if not allow_pickle:
        args.model_init_kwargs["use_safetensors"] = True
    return f"{name} ({reason})"


def _choose_attention(asked: str | None, setting: attention.Setting, row_ranks: int) -> tuple[str, str]:
    """`attention.choose`, or the one that exchanges parts of rows."""
    if row_ranks == 1:
        return attention.choose(asked, setting)
    if reason := attention.unsuited(attention.VARLEN, setting):
        raise ValueError(f"sequence_parallel needs varlen attention: {reason}: leave it out")
    return attention.VARLEN, f"each rank has the whole row and 1/{row_ranks} of its heads"


def _attention_setting(
    model_config: ModelConfig, args: SFTConfig, kwargs: dict[str, Any], seq_len: int, row_ranks: int
) -> attention.Setting:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    assert model_config.model_name_or_path is not None  # a required option
    loadable = {key: value for key, value in kwargs.items() if key != "device_map"}
    config = AutoConfig.from_pretrained(
        model_config.model_name_or_path, trust_remote_code=args.trust_remote_code, **loadable
    )
    text = config.get_text_config()
    layers = {"model_type": text.model_type, "layer_types": getattr(text, "layer_types", None)}
    if problems := [*attention.problems_of_layers(layers), *problems_of_parts(text.to_dict(), row_ranks)]:
        raise ValueError(f"{model_config.model_name_or_path}: {'; '.join(problems)}")
    on_gpu = torch.cuda.is_available() and not args.use_cpu
    capability = torch.cuda.get_device_capability() if on_gpu else (0, 0)
    if on_gpu and args.bf16 and capability < (8, 0):  # torch would emulate it, many times slower
        raise ValueError(f"bf16: this GPU has compute capability {capability}, bf16 needs 8.0: write fp16: true")
    return attention.Setting(
        use_cpu=not on_gpu,
        half=bool(args.bf16 or args.fp16),
        batch_tokens=seq_len * max(args.per_device_train_batch_size, args.per_device_eval_batch_size),
        model_class=AutoModelForCausalLM._model_mapping.get(type(config), None),
        config=text,
        capability=capability,
    )


def keep_quantised_layout(model: Any) -> None:
    """Keep 4-bit weights in the layout they are trained in, whatever the CPU.

    On CPUs with avx512_bf16, bitsandbytes repacks a 4-bit layer at its first forward pass in eval mode. It stays so
    in training: its product then has no gradient and is rounded to bf16. Layers narrower than 64 fail, and taking a
    state dict damages the scales. The isolation check, evaluations and samples all run in eval mode.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_vocabulary(model: Any, manifest: Manifest, pad_token_id: int | None = None) -> None:
    """Refuse shards whose token ids the model has no embedding for.

    Args:
        pad_token_id: what rows are filled up with, if they are.

    Raises:
        ValueError: an id in the shards, or that of padding, is beyond the model's embeddings.
    """
    rows = model.get_input_embeddings().weight.shape[0] or model.config.get_text_config().vocab_size
    largest = max(shard["max_token_id"] for split in manifest["splits"].values() for shard in split["shards"])
    if largest >= rows:
        raise ValueError(
            f"the shards hold the token id {largest:,}, the model has embeddings for {rows:,} tokens: prepare the data "
            "with the model's own tokenizer, or give the model rows for them with packhaul add-tokens"
        )
    if pad_token_id is not None and pad_token_id >= rows:
        raise ValueError(
            f"rows are filled up, and the tokenizer pads with the id {pad_token_id:,}, the model has embeddings for "
            f"{rows:,} tokens: leave out pad_to_multiple_of and sequence_parallel, or use packhaul add-tokens"
        )
