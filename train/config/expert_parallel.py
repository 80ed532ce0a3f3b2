"""Expert parallelism as a DeepSpeed file asks for it: the section "expert_parallel" (DeepSpeed's AutoEP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments

SECTION = "expert_parallel"
# In a group of parameters that was split after the optimizer was made: the number of the group that it was split from.
ASKED_GROUP = "asked_group"


def enabled_section(deepspeed: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The section, where it is turned on."""
    section = (deepspeed or {}).get(SECTION)
    return section if isinstance(section, Mapping) and section.get("enabled") else None


def section_of(args: TrainingArguments) -> Mapping[str, Any] | None:
    """The section of the DeepSpeed file that this process was launched with, where it is turned on."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return enabled_section(plugin.deepspeed_config) if plugin else None


def autoep_size(args: TrainingArguments) -> int:
    """Over how many processes the experts of a layer are spread (`autoep_size`); 0 without expert parallelism."""
    section = section_of(args)
    return int(section.get("autoep_size", 1)) if section else 0
