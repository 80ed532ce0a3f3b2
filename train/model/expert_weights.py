"""The weights of a model under expert parallelism, whole and by the names that transformers gives them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from train.run.distributed import is_first

if TYPE_CHECKING:
    from deepspeed.module_inject.auto_ep_config import MoELayerSpec

_EXPERTS = "experts."  # begins the names of DeepSpeed's experts in a layer: w1 (gate), w2 (down), w3 (up)
_BIAS = "e_score_correction_bias"


def whole_state(layers: Mapping[str, MoELayerSpec], engine: Any, unwrap: bool = True) -> dict[str, torch.Tensor]:
    """What transformers' own model would give as its state dict; stands for `Accelerator.get_state_dict`.

    That gives the first process's experts alone under ZeRO-1 and 2, by names that no model has, and raises under
    ZeRO-3. Every process must call it. One tensor is whole at a time.

    Args:
        layers: of `train.model.expert_parallel.find_layers`.
        engine: DeepSpeed's.
        unwrap: not used: DeepSpeed's engine is always unwrapped.

    Returns:
        On the first process all weights and buffers, on the CPU, in the dtypes of training; on the others nothing.
    """
    first = is_first()
    state: dict[str, torch.Tensor] = {}
    with _nothing_under_way(engine):
        for name, tensor in _tensors(engine):
            layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
            rest = name.removeprefix(f"{layer}.")
            own = f"{layer}.{_own_name(rest, layers[layer])}" if layer else name  # an error is one of all processes
            with _gathered(engine, tensor):
                module = engine.module.get_submodule(layer) if layer else None
                whole = _of_all_experts(tensor, module) if module and rest.startswith(_EXPERTS) else tensor
                if first:
                    state[own] = whole.detach().to("cpu", copy=True)
    for layer in layers if first else ():
        _fuse(state, layer, layers[layer])
    return state


@contextlib.contextmanager
def _nothing_under_way(engine: Any) -> Iterator[None]:
    """Without weights that ZeRO-3 fetches ahead, as it does in an evaluation; so DeepSpeed saves as well."""
    if not engine.zero_optimization_partition_weights():
        yield
        return
    engine.optimizer.checkpoint_event_prologue()
    yield
    engine.optimizer.checkpoint_event_epilogue()


def _tensors(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and the buffers that are saved, by name; what is tied comes once."""
    yield from engine.module.named_parameters()
    passing = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in engine.module.named_modules()
        for buffer in module._non_persistent_buffers_set
    }
    yield from ((name, buffer) for name, buffer in engine.module.named_buffers() if name not in passing)


def _gathered(engine: Any, tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """The tensor as this process holds it without ZeRO-3."""
    if not (isinstance(tensor, torch.nn.Parameter) and engine.zero_optimization_partition_weights()):
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([tensor])
    return gathered


def _of_all_experts(tensor: torch.Tensor, module: Any) -> torch.Tensor:
    """(num_experts, ...) of this process's (num_local_experts, ...); experts lie in the order of the ranks."""
    own = tensor.detach().contiguous()
    if module.ep_size == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(module.ep_size)]
    torch.distributed.all_gather(parts, own, group=module.ep_group)
    return torch.cat(parts)


def _own_name(rest: str, spec: MoELayerSpec) -> str:
    """transformers' name of a weight within a layer; that of an expert's weight stays until `_fuse`.

    Raises:
        RuntimeError: it has none, so that the saved model would be incomplete.
    """
    if rest.startswith(_EXPERTS):
        return rest
    if rest == f"router.{_BIAS}":
        return ".".join(filter(None, (spec.e_score_correction_bias_path, _BIAS)))
    names = {
        "router.gate.": spec.router_name,
        "shared_experts.": spec.shared_experts_name,
        "shared_experts_gate.": spec.shared_experts_gate_name,
    }
    for prefix, name in names.items():
        if rest.startswith(prefix):
            return f"{name}.{rest.removeprefix(prefix)}"
    raise RuntimeError(
        f"expert parallelism: {spec.moe_module_name}.{rest} has no name in the model that it was made of"
    )


def _fuse(state: dict[str, torch.Tensor], layer: str, spec: MoELayerSpec) -> None:
    """Put a layer's experts under transformers' names: gate and up in one tensor (num_experts, 2 * ffn, hidden)."""
    gate, down, up = (state.pop(f"{layer}.{_EXPERTS}{name}") for name in ("w1", "w2", "w3"))
    own = f"{layer}.{spec.experts_name}"
    state[f"{own}.{spec.expert_w1_name}"] = torch.cat([gate, up], dim=1)
    state[f"{own}.{spec.expert_w2_name}"] = down
