"""The model: how it is loaded, quantised, adapted, and which attention keeps packed documents apart."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

# Attention implementations that keep packed documents apart: flash attention by cu_seq_lens, the others by the
# block-diagonal mask that transformers makes from position_ids.
ISOLATING = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "sdpa", "eager", "flex_attention")


def choose_attention(asked: str | None, use_cpu: bool) -> tuple[str, str]:
    """The attention implementation and why.

    Raises:
        ValueError: one that is not known to keep packed documents apart.
    """
    if asked is not None:
        if asked.split("|")[-1] not in ISOLATING and not asked.startswith("kernels-community/"):
            raise ValueError(
                f"attn_implementation {asked!r} is not known to keep packed documents apart; those that do: {ISOLATING}"
            )
        return asked, "asked for"
    import torch

    if use_cpu or not torch.cuda.is_available():
        return "sdpa", "no GPU"
    if find_spec("flash_attn") is not None:
        return "flash_attention_2", "flash-attn is installed"
    return "sdpa", "flash-attn is not installed; the block-diagonal mask needs memory of seq_len x seq_len per row"


def prepare_model_arguments(model_config: Any, args: Any, asked_dtype: str | None) -> str:
    """Set `args.model_init_kwargs` as TRL's own script does; the attention implementation with its reason."""
    attention, reason = choose_attention(model_config.attn_implementation, args.use_cpu)
    args.model_init_kwargs = {
        **(args.model_init_kwargs or {}),
        "revision": model_config.model_revision,
        "attn_implementation": attention,
        "dtype": asked_dtype or model_config.dtype,
    }
    return f"{attention} ({reason})"


def check_vocabulary(model: Any, manifest: dict[str, Any]) -> None:
    """Refuse shards whose token ids the model has no embedding for.

    Raises:
        ValueError: an id in the shards is beyond the model's embeddings.
    """
    rows = model.get_input_embeddings().weight.shape[0] or model.config.get_text_config().vocab_size
    largest = max(shard["max_token_id"] for split in manifest["splits"].values() for shard in split["shards"])
    if largest >= rows:
        raise ValueError(
            f"the shards hold the token id {largest:,}, the model has embeddings for {rows:,} tokens: prepare the data "
            "with the model's own tokenizer"
        )
