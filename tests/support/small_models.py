"""Small random models of every type: sizes for their configurations."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 4,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_topk": 2,
    "moe_k": 2,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "sliding_window": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "state_size": 16,
    "conv_kernel": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "lru_width": 64,
    "attention_hidden_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_token_id": 3,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "kv_channels": 16,
    "block_size": 512,
}
_LOCAL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96}
_LOCAL_THEN_FULL = ["sliding_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA4 = {
    "layer_types": _LOCAL_THEN_FULL,
    "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}},
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 300,
}
_GEMMA3N = {**_GEMMA4, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]}
del _GEMMA3N["per_layer_config"]
_DOTS3 = {
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "kv_lora_rank": 16,
    "per_layer_config": {i: {"num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 8} for i in (1, 3)},
    "index_head_dim": 16,
    "index_n_heads": 16,
    "index_topk": 32,
    "shared_experts_intermediate_size": 32,
}
_ENCODER = {**_LOCAL, "num_hidden_layers": 2, "adapter_out_dim": 64}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "hc_count": 2,
    "hc_lowrank": 8,
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
# What the sizes above do not fit, by type.
OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "expand": 2},
    "jamba": {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gemma3n_text": _GEMMA3N,
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 32},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**_ROPE, "mrope_section": [4, 2, 2]}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": _DOTS3,
    "dots3_note": {
        "vision_config": {**_ENCODER, "mlp_layer_types": ["dense"] * 2, "per_layer_config": {}, "adapter_in_dim": 64},
        "audio_config": {**_ENCODER, "downsample_hidden_size": 16, "head_dim": 16, "adapter_input_size": 64},
    },
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 16},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0], "intermediate_size_mlp": 96, "moe_layers": [1, 3]},
    "longcat_flash": {"num_layers": 2, "head_dim": 8, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "phi4_multimodal": {"audio_config": {"num_blocks": 2}, "vision_config": {"num_hidden_layers": 2}},
    "prophetnet": {"num_encoder_layers": 1, "num_decoder_layers": 2, "is_decoder": True, "is_encoder_decoder": False},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [32, 32],
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "attn_layers": ["local", "lsh"] * 2,
        "num_buckets": 8,
    },
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
    "xlnet": {"d_inner": 96},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "blt": {
        "encoder_hash_byte_group_vocab": 500,
        "encoder_hash_byte_group_size": [3, 4],
        "patcher_config": {**_LOCAL, "num_hidden_layers": 1},
        "encoder_config": {**_LOCAL, "num_hidden_layers": 1, "hidden_size_global": 64},
        "decoder_config": {**_LOCAL, "num_hidden_layers": 1, "hidden_size_global": 64},
        "global_config": {**_LOCAL, "num_hidden_layers": 2},
    },
    "musicgen": {"text_encoder": {"model_type": "t5", **_T5}},
    "musicgen_melody": {"text_encoder": {"model_type": "t5", **_T5}},
}
# Why there is no such language model here.
_DRAFTS = "it drafts for another model, whose keys and values it reads"
NO_MODEL = {
    "gemma3n": "its vision part needs the packages pillow and timm; its text part is gemma3n_text",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
}
# Sizes that a type's configuration has and that cannot be set.
UNSET = {
    "xlnet": ("max_position_embeddings", "n_positions"),
    "prophetnet": ("num_hidden_layers",),
    "zamba2": ("attention_hidden_size", "head_dim", "kv_channels"),
    "zamba": ("attention_hidden_size", "head_dim"),
    "gpt_neo": ("num_hidden_layers",),
    "longcat_flash": ("num_hidden_layers",),
}
PARTS = ("text_config", "decoder_config", "llm_config")  # configurations within one


def small_config(kind: str) -> Any:
    """The type's default configuration with small sizes."""
    from transformers import CONFIG_MAPPING

    own = OWN.get(kind, {})
    default = CONFIG_MAPPING[kind](**{name: own[name] for name in PARTS if name in own})
    sizes = _fitting(default, kind)
    if "qk_rope_head_dim" in sizes and "head_dim" not in own:  # latent attention: that is its heads' size
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    for name in PARTS:
        inner = getattr(default, name, None)
        if inner is not None:
            sizes[name] = {**inner.to_dict(), "layer_types": None, **_fitting(inner), **own.get(name, {})}
    types = default.__dict__.get("layer_types")  # some work it out
    if types and "layer_types" not in own:
        kinds = list(dict.fromkeys(types))
        sizes["layer_types"] = (kinds * 4)[: SIZES["num_hidden_layers"]]
    return type(default)(**sizes)


def _fitting(default: Any, kind: str | None = None) -> dict[str, Any]:
    """The sizes that this configuration has."""
    kind = kind or default.model_type
    names = [name for name in SIZES if _has(default, name) and name not in UNSET.get(kind, ())]
    return {**{name: SIZES[name] for name in names}, **OWN.get(kind, {})}


def _has(config: Any, name: str) -> bool:
    """Whether a size can be given for all layers."""
    prop = getattr(type(config), name, None)
    if isinstance(prop, property) and prop.fset is None:
        return False
    try:
        return hasattr(config, name)
    except (RuntimeError, NotImplementedError):  # other layers have other ones
        return False
