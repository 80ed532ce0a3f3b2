"""What programs that read models with transformers 4 look for in an export: names that transformers 5 no longer writes.

Serving engines pin their own transformers. One of version 4 takes no notice of `rope_parameters`: it computes with a
base frequency of 10,000 and says nothing. It cannot load a tokenizer whose special tokens are a list. transformers 5
reads the old names as it reads its own, so an export has both.
"""

from __future__ import annotations

from typing import Any

_MACHINE = ("is_local", "local_files_only")  # how the tokenizer was loaded here


def with_old_config_names(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the names of both versions."""
    named = dict(config)
    if isinstance(named.get("text_config"), dict):
        named["text_config"] = with_old_config_names(named["text_config"])
    if "dtype" in named:
        named["torch_dtype"] = named["dtype"]
    if isinstance(rotary := named.get("rope_parameters"), dict):
        named |= _old_rotary(rotary)
    return named


def _old_rotary(rotary: dict[str, Any]) -> dict[str, Any]:
    """The parameters of rotary embeddings, of all layers or by kind of layer, by their old names."""
    kinds = {kind: of_kind for kind, of_kind in rotary.items() if isinstance(of_kind, dict) and "rope_theta" in of_kind}
    if not kinds:
        return _old_rotary_of_a_kind(rotary)
    if kinds.keys() != {"full_attention", "sliding_attention"}:
        return {}
    # Gemma 3 is the one model that version 4 has names for.
    local = kinds["sliding_attention"]["rope_theta"]
    return {**_old_rotary_of_a_kind(kinds["full_attention"]), "rope_local_base_freq": local}


def _old_rotary_of_a_kind(rotary: dict[str, Any]) -> dict[str, Any]:
    apart: dict[str, Any] = {name: rotary[name] for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
    scaling = {name: value for name, value in rotary.items() if name not in apart}
    return apart if scaling.get("rope_type", "default") == "default" else {**apart, "rope_scaling": scaling}


def with_old_tokenizer_names(config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with the old names alone, which both versions read."""
    named = {name: value for name, value in config.items() if name not in _MACHINE}
    if isinstance(named.get("extra_special_tokens"), list):
        named["additional_special_tokens"] = named.pop("extra_special_tokens")
    if isinstance(named.get("model_specific_special_tokens"), dict):
        named["extra_special_tokens"] = named.pop("model_specific_special_tokens")
    if named.get("tokenizer_class") == "TokenizersBackend":
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
    return named
