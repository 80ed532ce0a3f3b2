"""Expert parallelism by DeepSpeed's AutoEP: what has to be mended of it (0.19.8), where a DeepSpeed file asks for it.

DeepSpeed replaces each layer of experts when it wraps the model: a process then holds some of a layer's experts, and
the tokens travel to them. Each mend has a test that fails when the installed libraries no longer need it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from train.config.expert_parallel import ASKED_GROUP, section_of

if TYPE_CHECKING:
    from deepspeed.module_inject.auto_ep_config import MoELayerSpec

log = logging.getLogger(__name__)


def install(trainer: Any) -> None:
    """Make training, saving and resuming work with expert parallelism, if the launch asks for it.

    Call it before DeepSpeed wraps the model.

    Raises:
        ValueError: DeepSpeed finds no layer of experts in the model, and would train without expert parallelism.
    """
    section = section_of(trainer.args)
    if section is None:
        return
    from train.model.expert_weights import whole_state

    layers = find_layers(trainer.model, section)
    accept_names_in_registry()
    split_groups_of_experts()
    trainer.accelerator.get_state_dict = partial(whole_state, layers)
    experts, size = next(iter(layers.values())).num_experts, section.get("autoep_size", 1)
    log.info(f"expert parallelism: {experts // size} of {experts} experts in each process, in {len(layers)} layers")


def find_layers(model: Any, section: Mapping[str, Any]) -> dict[str, MoELayerSpec]:
    """DeepSpeed's descriptions of the layers that it will replace, by name.

    It keeps no note of how the model calls their parts, which a saved model needs.

    Raises:
        ValueError: there is none, or DeepSpeed has no preset for the model.
    """
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_config import parse_autoep_config

    found = {spec.moe_module_name: spec for spec in AutoEP(model, parse_autoep_config(dict(section))).ep_parser()}
    if not found:
        raise ValueError(
            f"expert_parallel: DeepSpeed finds no layer of experts in {type(model).__name__}, and would silently train "
            "without expert parallelism: use a launch file without it, such as zero3.yaml"
        )
    return found


def holds_a_part(model: Any) -> bool:
    """Whether this process has some of a layer's experts, so that all processes must call the model equally often."""
    return any(getattr(module, "_is_autoep_layer", False) for module in model.modules())


def accept_names_in_registry() -> None:
    """Let transformers' registry of recorded outputs take names of classes next to models.

    AutoEP (auto_ep_presets/base.py) uses it as the plain dict that it was before transformers 5.23: without this no
    Qwen3-MoE starts, and what AutoEP puts back would be found by no model.
    """
    from transformers.utils import output_capturing

    registry: Any = output_capturing._CanRecordRegistry
    if getattr(registry, "takes_names", False):
        return
    get_of_model, set_of_model = registry.get, registry.__setitem__

    def get(self: Any, key: Any, default: Any = None) -> Any:
        return dict.get(self, key, default) if isinstance(key, str) else get_of_model(self, key)

    def set_item(self: Any, key: Any, value: Any) -> None:
        store = dict.__setitem__ if isinstance(key, str) else set_of_model
        store(self, key, value)

    registry.get, registry.__setitem__, registry.takes_names = get, set_item, True


def split_groups_of_experts() -> None:
    """Let DeepSpeed's ZeRO-1 and 2 take the Trainer's optimizer: experts in parameter groups of their own.

    DeepSpeed splits the groups of its own optimizers only, and refuses others. It must happen after AutoEP has replaced
    the parameters, and before the optimizer is wrapped; the Trainer makes its schedule later.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    original = DeepSpeedEngine._configure_optimizer
    if getattr(original, "splits", False):
        return

    def configure(self: Any, client_optimizer: Any, model_parameters: Any) -> Any:
        if self.has_moe_layers and self.zero_optimization_stage() in (1, 2):
            _split_groups(client_optimizer.param_groups)
        return original(self, client_optimizer, model_parameters)

    configure.splits = True  # type: ignore[attr-defined]
    DeepSpeedEngine._configure_optimizer = configure


def _split_groups(groups: list[dict[str, Any]]) -> None:
    """Split them in place, each with the number of the group that it comes from."""
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as split

    for number, group in enumerate(groups):
        group |= {"name": f"group{number}", ASKED_GROUP: number}
    groups[:] = split(groups, max_group_size=float("inf"))
