"""Bytes of weights, gradients, optimizer states and buffers on one rank, exact for each way of sharding.

What each library allocates is read from its code (DeepSpeed 0.19.8, accelerate 1.15, torch 2.13):

    DDP       `torch.nn.parallel.DistributedDataParallel`: buckets of the size of all gradients, next to them
    ZeRO-1/2  `deepspeed.runtime.zero.stage_1_and_2`: all weights; fp32 weights, states and (stage 2) gradients of a
              part; reduction buckets, two with overlap_comm; in a step the part's gradients flat and in fp32
    ZeRO-3    `deepspeed.runtime.zero.stage3`: a part of everything; whole weights as long as they are used again within
              `stage3_max_reuse_distance`; in a step the gradients of a sub-group in fp32
    FSDP2     `torch.distributed.fsdp.fully_shard`, `accelerate.utils.fsdp_utils`: a part of everything in fp32; the
              weights of two layers, and of the root (embeddings and head), gathered in half precision

The optimizer's states are those of `train.memory.optimizer_states`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.memory.optimizer_states import States, for_a_moment, is_known, states_of
from train.memory.setting import BYTES, Setting
from train.memory.tracing import Weight

# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), and what transformers makes of "auto".
_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_reuse_distance": 1e9,
    "sub_group_size": 1e9,
}


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes on a rank's GPU (or on its CPU, where it trains there)."""

    weights: int
    gradients: int  # while passes run, where they do not grow in them
    optimizer: int  # with the fp32 weights that DeepSpeed keeps
    buffers: int  # of reductions, and weights gathered for a while
    in_backward: int = 0  # more once the first gradients of weights are made
    late: int = 0  # more at the end of a backward pass
    files: int = 0  # of the model, beyond the weights that are used from them
    step: int  # gradients, and what a step takes for a moment, in the place of `gradients` and of the passes
    paged: int = 0  # optimizer states that leave the GPU when it is full
    host: int = 0  # in the host's memory, for this rank


def held(weights: Sequence[Weight], setting: Setting, hidden_size: int) -> Held:
    """What a rank holds.

    Raises:
        ValueError: the optimizer, or ZeRO stage 0, is not counted here.
    """
    if not is_known(setting.optim):
        states_of(setting.optim, 1, 4)
    kind = setting.sharding.kind
    if kind == "zero":
        if setting.sharding.stage == 0:
            raise ValueError("ZeRO stage 0 is not counted here: use stage 1, 2 or 3")
        return _zero3(weights, setting, hidden_size) if setting.sharding.stage == 3 else _zero12(weights, setting)
    return _fsdp2(weights, setting) if kind == "fsdp2" else _whole(weights, setting)


def trained(weights: Sequence[Weight]) -> int:
    """Number of trained weights."""
    return sum(w.count * w.elements for w in weights if w.trained)


def total(weights: Sequence[Weight]) -> int:
    """Number of weights as they are stored; packed ones count by their bytes."""
    return sum(w.count * w.elements for w in weights)


def _bytes(weights: Sequence[Weight]) -> int:
    return sum(w.count * w.elements * w.itemsize for w in weights)


def _largest(weights: Sequence[Weight]) -> int:
    return max((w.elements for w in weights), default=0)


def _whole(weights: Sequence[Weight], setting: Setting) -> Held:
    """Nothing is sharded: one process, or DDP. Weights that are traced as bf16 copies are themselves in fp32."""
    copies = _bytes(weights) if setting.copies else 0
    weights = _as_stored(weights, setting)
    learning = [w for w in weights if w.trained]
    states = [_states(w, setting) for w in learning]
    gradients, grow = _bytes(learning), setting.accumulation == 1 and (setting.keeps_gradients or setting.copies)
    step = sum(
        for_a_moment(setting.optim, trained(part), _largest(part), size, on_gpu=setting.on_gpu)
        for size in sorted({w.itemsize for w in learning})
        for part in [[w for w in learning if w.itemsize == size]]
    )
    return Held(
        weights=_bytes(weights) + copies,
        gradients=0 if grow else gradients,
        late=gradients if grow and setting.copies else 0,
        optimizer=sum(s.gpu for s in states),
        buffers=gradients if setting.sharding.kind == "ddp" else 0,
        files=BYTES[setting.dtype] * sum(w.count * w.unpacked for w in weights) if setting.keeps_files else 0,
        step=gradients + step,
        paged=sum(s.paged for s in states),
    )


def _as_stored(weights: Sequence[Weight], setting: Setting) -> Sequence[Weight]:
    """The model's own weights, not the copies that it computes with."""
    return [dataclasses.replace(w, itemsize=4) for w in weights] if setting.copies else weights


def _states(weight: Weight, setting: Setting) -> States:
    one = states_of(setting.optim, weight.elements, weight.itemsize, embedding=weight.embedding, columns=weight.columns)
    return States(gpu=weight.count * one.gpu, paged=weight.count * one.paged)


def _zero12(weights: Sequence[Weight], setting: Setting) -> Held:
    zero, stage = setting.sharding.zero, setting.sharding.stage
    number, width = trained(weights), BYTES[setting.model_dtype]
    part = -(-number // setting.sharding.processes)
    bucket = int(_number(zero, "reduce_bucket_size", 0)) * width * (2 if zero.get("overlap_comm") else 1)
    if not zero.get("contiguous_gradients", True):
        bucket = 0
    states = _flat_states(setting, part)
    if setting.sharding.offload("optimizer"):
        learning = [w for w in weights if w.trained]
        host = 4 * part + states.gpu + states.paged + (4 + width) * part
        host += width * part if setting.accumulation > 1 else 0
        at_once = width * _largest(learning)
        return Held(
            weights=_bytes(weights),
            gradients=0,
            optimizer=0,
            buffers=at_once,
            in_backward=bucket,
            step=0,
            host=host,
        )
    accumulated = number if stage == 1 else part
    gradients = width * accumulated if setting.accumulation > 1 else 0
    own_copy = width * part  # `grads_in_partition`: from the first full bucket on, else at the end
    is_early = stage == 2 and number > _number(zero, "reduce_bucket_size", 0)
    # Made with the first gradient, given back when gradients are reduced: in stage 1 after the last micro-batch alone.
    stays = stage == 1 and setting.accumulation > 1
    return Held(
        weights=_bytes(weights),
        gradients=gradients,
        optimizer=4 * part + states.gpu,
        buffers=bucket if stays else 0,
        in_backward=(0 if stays else bucket) + (own_copy if is_early else 0),
        late=0 if is_early else own_copy,
        step=_flat_step(setting, part, width, part),
        paged=states.paged,
    )


def _flat_step(setting: Setting, part: int, width: int, group: int) -> int:
    """The gradients of a part, those of a group flat, then in fp32, then what the optimizer takes."""
    flat = width * part + width * group + (4 * group if width < 4 else 0)
    moment = for_a_moment(setting.optim, group, group, 4, on_gpu=setting.on_gpu)
    return max(flat, width * (part - group) + 4 * group + moment)


def _flat_states(setting: Setting, elements: int) -> States:
    return states_of(setting.optim, elements, 4)


def _zero3(weights: Sequence[Weight], setting: Setting, hidden_size: int) -> Held:
    zero, processes = setting.sharding.zero, setting.sharding.processes
    number, width = trained(weights), BYTES[setting.model_dtype]
    part = -(-number // processes)
    group = min(part, int(_number(zero, "sub_group_size", hidden_size)))
    states = _flat_states(setting, part)
    bucket = int(_number(zero, "reduce_bucket_size", hidden_size)) * width
    gathered, whole = _gathered(weights, zero, hidden_size)
    in_host = setting.sharding.offload("param")
    shard = -(-_bytes(weights) // processes)
    on_gpu, buffers = whole + (0 if in_host else shard), gathered + 2 * bucket
    if setting.sharding.offload("optimizer"):
        host = (4 + 4 + width) * part + states.gpu + states.paged + (shard if in_host else 0)
        host = 0 if setting.sharding.offload("optimizer") == "nvme" else host
        return Held(weights=on_gpu, buffers=buffers, gradients=0, optimizer=0, step=0, host=host)
    step = _flat_step(setting, part, width, group)
    host = shard if in_host == "cpu" else 0
    return Held(
        weights=on_gpu,
        buffers=buffers,
        gradients=width * part,
        optimizer=4 * part + states.gpu,
        step=step,
        paged=states.paged,
        host=host,
    )


def _gathered(weights: Sequence[Weight], zero: Any, hidden_size: int) -> tuple[int, int]:
    """Bytes of whole weights while they are used, and of the small ones that always stay whole.

    A weight is released after its use if it is not used again within the reuse distance
    (`PartitionedParameterCoordinator.__params_to_release`): where the forward pass ends and the backward pass begins,
    half that distance stays. The head is gathered for the loss, and the next weights are fetched ahead.
    """
    threshold = _number(zero, "stage3_param_persistence_threshold", hidden_size)
    large = [w for w in weights if w.elements > threshold]
    whole = _bytes([w for w in weights if w.elements <= threshold])
    elements = total(large)
    ahead = _number(zero, "stage3_prefetch_bucket_size", hidden_size) + _largest(large)
    live = min(elements, _number(zero, "stage3_max_reuse_distance", hidden_size) / 2 + ahead)
    return round(live / elements * _bytes(large)) if elements else 0, whole


def _number(zero: Any, key: str, hidden_size: int) -> float:
    """A setting of DeepSpeed's; "auto" as transformers fills it in (`HfTrainerDeepSpeedConfig`)."""
    value = zero.get(key, _DEFAULTS[key])
    if value != "auto":
        return float(value)
    return {
        "reduce_bucket_size": 1.0 * hidden_size**2,
        "stage3_prefetch_bucket_size": 0.9 * hidden_size**2,
        "stage3_param_persistence_threshold": 10.0 * hidden_size,
    }.get(key, _DEFAULTS[key])


def _fsdp2(weights: Sequence[Weight], setting: Setting) -> Held:
    sharding, width = setting.sharding, BYTES[setting.model_dtype]
    processes = sharding.processes // sharding.replicas
    learning, frozen = [w for w in weights if w.trained], [w for w in weights if not w.trained]
    part = -(-trained(weights) // processes)
    layer = max((_layer_elements(weights)).values(), default=0)
    root = sum(w.elements for w in weights if w.layer is None)
    gathered = width * (root + 2 * layer)
    reduced = 4 * max((_layer_elements(learning)).values(), default=0)
    late = 4 * sum(w.elements for w in learning if w.layer is None)
    states = [states_of(setting.optim, w.count * w.elements, 4) for w in learning]
    return Held(
        weights=4 * part + -(-_bytes(frozen) // processes),
        gradients=4 * part,
        optimizer=sum(s.gpu for s in states) // processes,
        buffers=gathered,
        in_backward=reduced,
        late=late,
        step=4 * part + for_a_moment(setting.optim, part, 0, 4, on_gpu=setting.on_gpu),
    )


def _layer_elements(weights: Sequence[Weight]) -> dict[int, int]:
    """Elements of one layer of each kind."""
    found: dict[int, int] = {}
    for weight in weights:
        if weight.layer is not None:
            found[weight.layer] = found.get(weight.layer, 0) + weight.elements
    return found


def checkpoint_bytes(weights: Sequence[Weight], setting: Setting) -> int:
    """Of a checkpoint over all processes: weights as the libraries save them, and the optimizer's states.

    Adapters are saved alone. DeepSpeed saves the fp32 weights next to those in half precision.
    """
    weights = _as_stored(weights, setting)
    learning = [w for w in weights if w.trained]
    saved = learning if setting.adapters else list(weights)
    number = trained(weights)
    if setting.sharding.kind == "zero":
        states = _flat_states(setting, number)
        return BYTES[setting.model_dtype] * sum(w.count * w.elements for w in saved) + 4 * number + _both(states)
    width = 4 if setting.sharding.kind == "fsdp2" else None
    size = sum(w.count * w.elements * (width or w.itemsize) for w in saved)
    return size + sum(_both(_states(w, setting)) for w in learning)


def _both(states: States) -> int:
    return states.gpu + states.paged
