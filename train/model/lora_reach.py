"""What LoRA adapts, by part of the model, found on the model without weights.

All experts of a layer lie in one parameter, which peft reaches by other rules than layers: some settings of adapters
stop there once the weights are loaded, and a name that experts and layers share, such as down_proj, reaches the
experts alone.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from train.model.documentwise import mixers
from train.model.lora_names import ALL_LINEAR, as_parameters, is_found, written

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

PARTS = ("attention", "layers with a state", "dense", "experts", "router", "embeddings")


@dataclass
class Reach:
    """Weights of matrices and convolutions, by part.

    Attributes:
        total: those the model has.
        adapted: those of them that an adapter changes.
        trained: those of the adapters.
        experts: the names that lora_target_parameters takes for the experts.
        left_out: those of the weights not adapted that are named as targets, also by all-linear, by such names.
    """

    total: Counter[str] = field(default_factory=Counter)
    adapted: Counter[str] = field(default_factory=Counter)
    trained: int = 0
    experts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = (
            f"{part} {_size(self.adapted[part])} of {_size(self.total[part])}" for part in PARTS if self.total[part]
        )
        return f"trains {self.trained:,} weights, which change of the model's: {', '.join(parts)}"

    def notes(self) -> Iterator[str]:
        """What people do not expect of their targets."""
        if self.adapted["router"]:
            yield "LoRA adapts the routers of the experts as well; list lora_target_modules to leave them as they are"
        if self.total["experts"] and not self.adapted["experts"]:
            instead = written("lora_target_parameters", self.experts)
            yield f"LoRA leaves all experts as they are; with lora_dropout: 0, {instead} adapts them"
        if self.left_out:
            instead = written("lora_target_parameters", self.left_out)
            yield f"all-linear leaves layers as they are; with lora_dropout: 0, {instead} adapts them"


def _size(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return str(number)


def measure(adapters: LoraConfig, model: PreTrainedModel) -> Reach:
    """What these adapters change.

    Args:
        model: on the meta device, without weights; it gets the adapters.

    Raises:
        ValueError: peft does not take these settings for this model, with its words.
    """
    from peft import get_peft_model

    parts = part_of_each(model)
    weights = {name: weight for name, weight in model.named_parameters() if _counts(name, weight)}
    first = {id(weight): name for name, weight in weights.items()}
    tied = {name: first.get(id(weight)) for name, weight in model.named_parameters(remove_duplicate=False)}
    with warnings.catch_warnings():  # peft warns where it matches nothing, which is said in our words
        warnings.simplefilter("ignore")
        adapted: Any = get_peft_model(model, copy.deepcopy(adapters))
    found = Reach(trained=sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad))
    changed = {tied.get(name) for name in _changed(adapted.base_model.model)}
    for name, weight in weights.items():
        found.total[parts[name]] += weight.numel()
        found.adapted[parts[name]] += weight.numel() if name in changed else 0
    missed = (name for name in weights if name not in changed and _is_named(name, adapters, model))
    found.experts = as_parameters(name for name in weights if parts[name] == "experts")
    found.left_out = as_parameters(missed)
    return found


def _is_named(parameter: str, adapters: LoraConfig, model: torch.nn.Module) -> bool:
    """Whether one of the targets seems to say this parameter, by its own name or its layer's."""
    layer, _, own = parameter.rpartition(".")
    if adapters.target_modules == ALL_LINEAR:
        return isinstance(model.get_submodule(layer), torch.nn.Linear) and layer != "lm_head"
    names = [layer] if own == "weight" else [layer, parameter]
    modules = [] if isinstance(adapters.target_modules, str) else adapters.target_modules or []
    is_module = any(is_found(target, names) for target in modules)
    return is_module or any(is_found(target, [parameter]) for target in adapters.target_parameters or [])


def _counts(name: str, weight: torch.Tensor) -> bool:
    """Norms and biases, those of experts too, are no part of what adapters are for."""
    return weight.dim() >= 2 and not name.endswith("bias")


def _changed(model: torch.nn.Module) -> Iterator[str]:
    """The names, before the adapters came, of the parameters that an adapter changes or that are trained whole."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from peft.utils import ModulesToSaveWrapper

    for name, module in model.named_modules():
        plain = name.replace(".base_layer", "")
        if isinstance(module, ParamWrapper):
            yield f"{plain}.{module.parameter_name}"
        elif isinstance(module, LoraLayer):
            yield f"{plain}.weight"
        elif isinstance(module, ModulesToSaveWrapper):
            yield from (f"{plain}.{inner}" for inner, _ in module.original_module.named_parameters())


def check(adapters: LoraConfig, model: PreTrainedModel) -> Reach:
    """What adapters change, refused where peft stops, or passes over what is named.

    Args:
        model: as for `measure`; its names are known to hold all targets.

    Raises:
        ValueError: what to write instead.
    """
    attention = _layers_of_attention(model)  # before peft, which may stop half-way, renames them
    try:
        found = measure(adapters, model)
    except ValueError as error:
        raise ValueError(_explain(str(error), adapters, attention)) from error
    if found.left_out and adapters.target_modules != ALL_LINEAR:
        experts = found.experts if set(found.left_out) & set(found.experts) else []
        raise ValueError(
            f"lora_target_modules: peft leaves {', '.join(found.left_out)} as it is, though it is named: write "
            f"{written('lora_target_parameters', {*found.left_out, *experts})}, and lora_dropout: 0"
        )
    return found


def _layers_of_attention(model: torch.nn.Module) -> list[str]:
    parts, weights = part_of_each(model), model.named_parameters()
    return sorted({n.split(".")[-2] for n, weight in weights if parts[n] == "attention" and _counts(n, weight)})


def _explain(reason: str, adapters: LoraConfig, layers: list[str]) -> str:
    """peft's reason in the run config's names."""
    instead = {"lora_dropout": f"{adapters.lora_dropout}: write 0", "use_dora": "true: write false"}
    option = next((name for name in instead if name in reason), None)
    if option is None:
        return f"lora_target_modules: peft does not take these settings for this model: {reason}"
    return (
        f"{option}: {instead[option]}, as the experts lie in one parameter, which such adapters cannot change; or name "
        f"layers that are no experts, such as {written('lora_target_modules', layers)}"
    )


def part_of_each(model: torch.nn.Module) -> dict[str, str]:
    """The part that each parameter belongs to, by its name."""
    stateful = mixers(model)
    modules = dict(model.named_modules())
    return {name: _part(name.rpartition(".")[0], modules, stateful) for name, _ in model.named_parameters()}


def _part(owner: str, modules: dict[str, torch.nn.Module], stateful: dict[str, torch.nn.Module]) -> str:
    """The innermost module around a parameter that tells its part."""
    if isinstance(modules[owner], torch.nn.Embedding) or owner == "lm_head":
        return "embeddings"
    while owner:
        outer, _, own = owner.rpartition(".")
        if owner in stateful:
            return "layers with a state"
        if own == "experts":
            return "experts"
        if hasattr(modules[outer], "experts") and "shared" not in own:
            return "router"
        if "attention" in type(modules[owner]).__name__.lower() or own in ("self_attn", "attn", "attention"):
            return "attention"
        owner = outer
    return "dense"
