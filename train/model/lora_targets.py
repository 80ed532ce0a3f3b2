"""LoRA's targets are compared with the model's own names before its weights are loaded.

peft refuses a list of which nothing is found; of a list with one misspelt name it adapts the others, silently.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from train.config.run_config import RunConfig, build_model_config
from train.model.lora_names import ALL_LINEAR, as_parameters, is_found, written

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import ModelConfig

    from train.model.lora_reach import Reach


def check_targets(config: RunConfig) -> Reach | None:
    """Refuse targets that the model does not have. Takes the time of the libraries' import, and no weights.

    Returns:
        What the adapters change; None without adapters.

    Raises:
        ValueError: a name is found nowhere in the model, with the nearest ones; or none is given, and peft has no
            default for this architecture; or it is one of experts that these adapters cannot change.
        OSError: the model's config cannot be loaded.
    """
    if not config.value("use_peft"):
        return None
    from trl import get_peft_config

    from train.model import lora_reach

    model_config = build_model_config(config)
    adapters: Any = get_peft_config(model_config)  # a LoraConfig: TRL makes no other
    model = skeleton(model_config, bool(config.value("trust_remote_code")))
    if problems := list(missing(adapters, model)):
        raise ValueError("\n- ".join(problems))
    return lora_reach.check(adapters, model)


def skeleton(model_config: ModelConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    assert model_config.model_name_or_path is not None  # a required option
    config = AutoConfig.from_pretrained(
        model_config.model_name_or_path, revision=model_config.model_revision, trust_remote_code=trust_remote_code
    )
    with without_zero3(), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


@contextlib.contextmanager
def without_zero3() -> Iterator[None]:
    """Under ZeRO-3 transformers makes every model with weights, and spreads them over the processes."""
    from transformers.integrations import deepspeed

    module: Any = deepspeed
    held, module._hf_deepspeed_config_weak_ref = module._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        module._hf_deepspeed_config_weak_ref = held


def missing(adapters: LoraConfig, model: PreTrainedModel) -> Iterator[str]:
    """A line for each target that is nowhere in the model, or no layer that LoRA adapts."""
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = [name for name, _ in model.named_parameters()]
    if adapters.target_modules is None and adapters.target_parameters is None:
        yield from _without_default(model)
    experts = _reached_as_experts(adapters, model)
    for target in _listed(adapters.target_modules):
        if not is_found(target, modules) and target not in experts:
            yield _describe_parameter(target, parameters) or _describe("lora_target_modules", target, modules)
        yield from _no_layers(target, modules)
    for target in _listed(adapters.target_parameters):
        if not is_found(target, parameters):
            yield _describe("lora_target_parameters", target, parameters)
    for target in _listed(adapters.modules_to_save):
        if not is_found(target, modules):
            yield _describe("lora_modules_to_save", target, modules)


def _listed(targets: Any) -> list[str]:
    """The names in a setting of peft; `all-linear` is no name."""
    if targets is None or targets == ALL_LINEAR:
        return []
    return sorted([targets] if isinstance(targets, str) else targets)


def _reached_as_experts(adapters: LoraConfig, model: PreTrainedModel) -> set[str]:
    """Targets that peft turns into parameters: of experts, which transformers keeps in one."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    converted = copy.deepcopy(adapters)
    convert_peft_config_for_transformers(converted, model, conversions=None)
    return set(_listed(adapters.target_modules)) - set(_listed(converted.target_modules))


def _without_default(model: PreTrainedModel) -> Iterator[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    if (kind := model.config.model_type) not in DEFAULTS:
        yield f"lora_target_modules: missing: peft has no default for {kind}: write {ALL_LINEAR}, or the layers' names"


def _no_layers(target: str, modules: dict[str, Any]) -> Iterator[str]:
    """peft refuses a block of layers too, but only when the weights are loaded."""
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention, Conv1D)
    for name, module in modules.items():
        if is_found(target, [name]) and not isinstance(module, layers):
            inner = [end for end, part in module.named_modules() if isinstance(part, layers)]
            instead = f"name its layers: {', '.join(inner[:8])}" if inner else "leave it out"
            kind = type(module).__name__
            yield f"lora_target_modules: {target!r} is a {kind}, not a layer that LoRA adapts: {instead}"
            return


def _describe_parameter(target: str, parameters: list[str]) -> str | None:
    """Experts lie in parameters, which peft reaches by another option."""
    found = as_parameters(name for name in parameters if is_found(target, [name]))
    if not found:
        return None
    instead = written("lora_target_parameters", found)
    return f"lora_target_modules: {target!r} is a parameter, not a layer: write {instead}"


def _describe(option: str, target: str, names: Iterable[str]) -> str:
    """The nearest names, of the last parts where the target has one part."""
    ends = {".".join(name.split(".")[-1 - target.count(".") :]) for name in names} - set(map(str, range(1000)))
    near = difflib.get_close_matches(target, sorted(ends), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(ends)[:12])}"
    return f"{option}: {target!r} is nowhere in the model; {hint}"
