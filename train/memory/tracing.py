"""What a forward and a backward pass hold in memory besides weights, for any architecture, counted on fake tensors.

Smaller models (`train.memory.skeleton`) are run under `FakeTensorMode`: every operation makes tensors of the right size
without contents. Each count is linear in the number of layers of a kind, so that of the whole model follows exactly:

    forward   the most during the forward pass, the loss included
    head      the most while the loss is differentiated, with what all layers have kept
    upper     the most while the last layers are differentiated
    bottom    the most while the first layer and the embeddings are differentiated, with the gradients of all layers
    kept      what the forward pass leaves for the backward pass
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from train.memory import as_on_gpu, stateful
from train.memory.live_bytes import LiveBytes
from train.memory.prepared import batch, document_lengths, give_storages, offloading, prepared
from train.memory.quantised import QuantisedLinear
from train.memory.setting import Setting
from train.memory.skeleton import NotTraced, Skeleton
from train.model import documentwise
from train.model.kept_logits import GIB, keeping
from train.model.lora_targets import without_zero3


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter of the model, on the meta device."""

    name: str
    count: int  # parameters like it: the same one of all layers of a kind
    elements: int
    itemsize: int
    trained: bool
    embedding: bool
    columns: int  # of a matrix, 0 for a vector
    layer: int | None  # the kind of its layers, None outside of them
    unpacked: int = 0  # elements of the matrix that a packed weight was made from


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Bytes of the whole model's passes, and its parameters."""

    forward: int
    head: int
    upper: int
    bottom: int
    kept: int
    layer: int  # of `kept`, by a layer in the mean
    weights: tuple[Weight, ...]

    @property
    def early(self) -> int:
        """Before a layer is differentiated."""
        return max(self.forward, self.head)


_COUNTS = ("forward", "head", "upper", "bottom", "kept")


def between(one: Traced, other: Traced, share: float) -> Traced:
    """On the line through two counts: 0 is the first, 1 the other. Passes whose attention needs no square of the tokens
    are on a line in the tokens."""
    names = (*_COUNTS, "layer")
    points = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return dataclasses.replace(one, **{name: round(a + share * (b - a)) for name, (a, b) in points.items()})


def trace(skeleton: Skeleton, setting: Setting) -> Traced:
    """Count what this setting's passes hold.

    Raises:
        NotTraced: an operation of the model has no size before its data is known, or its attention is unknown here.
    """
    samples = skeleton.samples()
    try:
        with without_zero3():  # in a run under ZeRO-3, TRL's head would gather the weights
            runs = [_Run(skeleton, layers, setting) for layers in samples]
    except NotTraced:
        raise
    except Exception as error:  # whatever a model's code meets without data
        lines = str(error).strip().splitlines() or [""]
        raise NotTraced(f"its code cannot be run without data ({type(error).__name__}: {lines[0][:200]})") from error
    base, further = runs[0], dict(zip([_added(samples[0], s, skeleton) for s in samples[1:]], runs[1:], strict=True))
    totals = {name: _extrapolate(skeleton, samples[0], base, further, name) for name in _COUNTS}
    in_layers = sum(run.kept - base.kept for run in further.values())
    return Traced(
        **totals,
        layer=in_layers // len(further) if further else totals["kept"] // len(skeleton.kinds),
        weights=tuple(_weights(base.model, skeleton, samples[0])),
    )


def key(setting: Setting, *, carries_state: bool) -> object:
    """Equal for settings that hold the same in their passes, where adapters and quantisation are the same.

    Args:
        carries_state: layers of the model do; they run a fixed number of times under ZeRO-3.
    """
    names = ("tokens", "model_dtype", "autocast", "keeps_gradients", "checkpointing", "activation_offloading")
    further = ("on_gpu", "attention", "documents", "copies", "keep_logits_gib")
    is_plain = setting.sharding.kind in ("none", "ddp")
    fixed_calls = carries_state and setting.sharding.stage == 3
    return *(getattr(setting, name) for name in names + further), is_plain, fixed_calls


def _added(base: list[int], sample: list[int], skeleton: Skeleton) -> int:
    """The kind of the layer that a sample has more than the first one."""
    (layer,) = set(sample) - set(base)
    return skeleton.kinds[layer]


def _extrapolate(skeleton: Skeleton, layers: list[int], base: _Run, further: dict[int, _Run], name: str) -> int:
    total: int = getattr(base, name)
    for kind, run in further.items():
        missing = skeleton.counts[kind] - sum(skeleton.kinds[layer] == kind for layer in layers)
        total += missing * (getattr(run, name) - getattr(base, name))
    return total


class _Run:
    """One forward and backward pass of a smaller model."""

    def __init__(self, skeleton: Skeleton, layers: list[int], setting: Setting):
        self.kept = 0
        self.model = prepared(skeleton.with_layers(layers), setting)
        causal = self.model.get_base_model() if setting.adapters else self.model
        stack = causal.get_submodule(skeleton.stack)
        with FakeTensorMode(allow_non_fake_inputs=True):
            give_storages(self.model)
            given = batch(setting)
            live = LiveBytes([*self.model.parameters(), *self.model.buffers(), *_tensors(given)])
            _mark_layers(stack, live)
            _drop_gradients(self.model, setting)
            documentwise.expect(self.model, document_lengths(setting))
            with self._kernels(setting), keeping(setting.keep_logits_gib), live, offloading(self.model, setting):
                self._run(given, live, setting)
        self.forward, self.head, *of_layers = live.peaks
        kept_elsewhere = self._logits_of_others(setting)
        self.forward, self.head, self.kept = (n + kept_elsewhere for n in (self.forward, self.head, self.kept))
        self.upper, self.bottom = max(of_layers[: (len(layers) + 1) // 2]), live.peaks[-1]

    def _logits_of_others(self, setting: Setting) -> int:
        """Where logits of all tokens are too many to be kept, those of a pass with fewer trained ones may be as many as
        the limit."""
        limit, vocabulary = setting.keep_logits_gib * GIB, self.model.get_output_embeddings().weight.shape[0]
        width = getattr(torch, setting.autocast or setting.model_dtype).itemsize
        return int(limit) if (setting.tokens - 1) * vocabulary * width > limit else 0

    @contextlib.contextmanager
    def _kernels(self, setting: Setting) -> Iterator[None]:
        with stateful.traceable(self.model), as_on_gpu.gpu_kernels() if setting.on_gpu else contextlib.nullcontext():
            yield

    def _run(self, given: dict[str, Any], live: LiveBytes, setting: Setting) -> None:
        with _autocast(setting):
            out = self.model(**given, fused_lm_head=True)
            loss = -out.log_probs.sum()
        self.kept = live.now
        del out
        live.begin_phase()
        loss.backward()


def _tensors(given: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in given.values() if isinstance(value, torch.Tensor)]


def _mark_layers(stack: Any, live: LiveBytes) -> None:
    """Begin a phase where the gradient of a layer's output is there, and its own backward pass begins."""

    def mark(module: Any, args: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if len(live.peaks) == 1 and hidden.requires_grad:
            hidden.register_hook(lambda _: live.begin_phase())

    for layer in stack:
        layer.register_forward_hook(mark)


def _drop_gradients(model: Any, setting: Setting) -> None:
    """Gradients that are added to others, or handed to other processes, do not stay."""
    if setting.keeps_gradients:
        return

    def drop(weight: torch.Tensor) -> None:
        weight.grad = None

    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(drop)


def _autocast(setting: Setting) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", getattr(torch, setting.autocast)) if setting.autocast else contextlib.nullcontext()


def _weights(model: Any, skeleton: Skeleton, layers: list[int]) -> Iterator[Weight]:
    """Every parameter of the whole model, those of like layers together."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantisedLinear)}
    for name, weight in model.named_parameters():
        place = _layer_of(name, skeleton.stack)
        kind = None if place is None else skeleton.kinds[layers[place]]
        if kind is not None and place != _first_of(kind, skeleton, layers):
            continue
        yield Weight(
            name=name,
            count=1 if kind is None else skeleton.counts[kind],
            elements=weight.numel(),
            itemsize=weight.element_size(),
            trained=weight.requires_grad,
            embedding=id(weight) in embeddings,
            columns=weight.shape[-1] if weight.dim() == 2 else 0,
            layer=kind,
            unpacked=packed.get(id(weight), 0),
        )


def _first_of(kind: int, skeleton: Skeleton, layers: list[int]) -> int:
    return next(place for place, layer in enumerate(layers) if skeleton.kinds[layer] == kind)


def _layer_of(name: str, stack: str) -> int | None:
    """The place in the stack of a parameter's layer; peft puts names in front."""
    _, found, rest = name.partition(f"{stack}.")
    number = rest.split(".", 1)[0]
    return int(number) if found and number.isdigit() else None
