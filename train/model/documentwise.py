"""Layers that carry a state from token to token, on packed rows, exactly: each document becomes a row of its own.

Linear attention, state spaces, recurrences and short convolutions are causal, so what stands to the right of a document
changes nothing inside it. The documents of a packed row become the rows of a right-padded batch for that layer alone,
those of like length together; attention and all other layers stay packed. No kernel has to know of packed rows, and
nothing is approximated.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, NamedTuple

import torch

WASTE = 0.25  # of a group's tokens, at most, are padding; more where the number of calls is fixed
CALLS = 8  # of a layer in each forward pass, where it may not depend on the row
_DUMMY_TOKENS = 64
# Parameters that only such layers have: decays, time steps and gates of recurrences.
_STATE_PARAMETERS = frozenset(
    {"A_log", "A", "dt_bias", "time_decay", "time_first", "recurrent_param", "slope_rate", "igate_preact", "time_maa_k"}
    | {"time_mix_key"}  # of RWKV, whose feed-forward layers look one token back
)
# What describes the packed row as a whole. A layer that gets one document a row needs none of it.
_PACKED_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "cu_seqlens")
_MASKS = ("attention_mask", "mask", "linear_attn_mask", "mamba_mask", "padding_mask")


class Group(NamedTuple):
    """Documents that are the rows of one call of a layer.

    Attributes:
        rows: (documents, longest), the tokens' places in the packed row; padding is the last token again.
        kept: (tokens,), which of the flattened rows are no padding.
        places: (tokens,), of these in the packed row.
    """

    rows: torch.Tensor
    kept: torch.Tensor
    places: torch.Tensor


@dataclass
class Bounds:
    """Where the documents of the rows in the forward pass lie.

    Attributes:
        lengths: of the documents of the one packed row; None where rows are whole documents.
        calls: how often a layer runs in each forward pass; None: as often as it takes.
        expected: the lengths of the next forward pass, where the host knows them.
        packed: the row's bounds as the model got them, for layers that go their own way.
        own_way: classes whose kernels take them (`train.model.document_kernels`), and the names that they get.
        training: those layers run as in training, while the proof has the model in eval mode.
    """

    lengths: list[int] | None = None
    calls: int | None = None
    expected: list[int] | None = None
    packed: dict[str, Any] = field(default_factory=dict)
    own_way: dict[str, dict[str, str]] = field(default_factory=dict)
    training: bool = False
    _indices: dict[torch.device, list[Group]] = field(default_factory=dict)

    def set(self, lengths: list[int] | None) -> None:
        """For the forward pass that begins, and for what gradient checkpointing computes again of it."""
        self.lengths = None if lengths is None else _join_padding(lengths)
        self._indices = {}

    def indices(self, device: torch.device) -> list[Group]:
        """The groups of documents; made once for all layers."""
        if device not in self._indices:
            assert self.lengths is not None
            found = groups(self.lengths) if self.calls is None else few_groups(self.lengths, self.calls)
            made = [_group(self.lengths, group) for group in found]
            made += [_dummy(self.lengths)] * ((self.calls or 0) - len(made))
            self._indices[device] = [Group(*(part.to(device, non_blocking=True) for part in one)) for one in made]
        return self._indices[device]


def _join_padding(lengths: list[int]) -> list[int]:
    """Tokens of padding at a row's end, each a document of its own, as one document: kernels pad each document to a
    chunk, 64 tokens for a gated delta rule, and nothing is learned from a document of one token."""
    padding = sum(1 for _ in takewhile(lambda length: length == 1, reversed(lengths)))
    return [*lengths[:-padding], padding] if padding > 1 else lengths


def groups(lengths: list[int], waste: float = WASTE) -> list[list[int]]:
    """Documents' numbers, longest first, so grouped that padding a group to its longest wastes at most `waste`."""
    found: list[list[int]] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[found[-1][0]] * (len(found[-1]) + 1) if found else 0
        if not found or tokens + lengths[number] < (1 - waste) * size:
            found.append([])
            tokens = 0
        found[-1].append(number)
        tokens += lengths[number]
    return found


def few_groups(lengths: list[int], most: int) -> list[list[int]]:
    """At most so many groups, of the least waste in steps of 5 %."""
    tried = (groups(lengths, percent / 100) for percent in range(int(100 * WASTE), 101, 5))  # 1: all in one group
    return next(found for found in tried if len(found) <= most)


def _group(lengths: list[int], group: list[int]) -> Group:
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    at, own = torch.arange(lengths[group[0]]), torch.tensor([lengths[i] for i in group])[:, None]
    rows = starts[group][:, None] + torch.minimum(at, own - 1)
    kept = (at < own).flatten().nonzero()[:, 0]
    return Group(rows, kept, rows.flatten()[kept])


def _dummy(lengths: list[int]) -> Group:
    """A call whose results are not used."""
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    start, tokens = sum(lengths[:shortest]), min(lengths[shortest], _DUMMY_TOKENS)
    none = torch.zeros(0, dtype=torch.long)
    return Group(torch.arange(start, start + tokens)[None], none, none)


def is_stateful(module: torch.nn.Module) -> bool:
    """Whether a module itself, not one inside it, mixes tokens otherwise than by attention."""
    if isinstance(module, torch.nn.Conv1d | torch.nn.Embedding | torch.nn.Linear):
        return False
    if "ShortConv" in type(module).__name__:
        return True
    if _is_attention(module):  # whatever else it has, its mask does the work, unless it pools by place
        return _pools(module)
    convolves = any(_mixes_time(child) for child in module.children())
    own = (module.named_parameters(recurse=False), module.named_buffers(recurse=False), module.named_children())
    return convolves or any(name in _STATE_PARAMETERS for name, _ in chain(*own))


def _is_attention(module: torch.nn.Module) -> bool:
    """Not a projection within one, which gets no mask."""
    return hasattr(module, "num_key_value_groups") and "attention_mask" in inspect.signature(module.forward).parameters


def _pools(module: torch.nn.Module) -> bool:
    """Whether keys of neighbouring tokens are pooled, in windows that begin at places in the row."""
    return getattr(module, "compressor", None) is not None


def _mixes_time(child: torch.nn.Module) -> bool:
    """A convolution over more than one token."""
    kernel = getattr(child, "kernel_size", None)
    is_short = isinstance(child, torch.nn.Conv1d) or "ShortConvolution" in type(child).__name__
    return is_short and kernel is not None and torch.Size(kernel if isinstance(kernel, tuple) else (kernel,)) != (1,)


def mixers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The outermost stateful modules, by name."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if is_stateful(module) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def install(model: torch.nn.Module) -> Counter[str]:
    """Let each stateful layer see one document a row. A second time it changes nothing.

    Args:
        model: called with `cu_seq_lens_q`, (documents + 1,).

    Returns:
        How many layers of each class.
    """
    found = mixers(model)
    if found and not hasattr(model, "_document_bounds"):
        model._document_bounds = bounds = Bounds()  # type: ignore[assignment]
        model.register_forward_pre_hook(functools.partial(_remember, bounds), with_kwargs=True)
        for module in found.values():
            module.forward = _documentwise(module, bounds)
    return Counter(type(module).__name__ for module in found.values())


def fix_calls(model: torch.nn.Module) -> None:
    """Let each stateful layer run equally often for every row: under ZeRO-3 each call of a module inside it gathers
    weights, and processes whose rows took different numbers of calls would wait for each other for ever."""
    if hasattr(model, "_document_bounds"):
        model._document_bounds.calls = CALLS  # type: ignore[union-attr]


def bounds_of(model: torch.nn.Module) -> Bounds:
    """Of a model with stateful layers, after `install`."""
    bounds: Any = model._document_bounds
    assert isinstance(bounds, Bounds)
    return bounds


def expect(model: torch.nn.Module, lengths: list[int] | None) -> None:
    """Tell the next forward pass the lengths of its documents: to read them from the device would wait for all its
    work. Nothing to do for a model without stateful layers."""
    if hasattr(model, "_document_bounds"):
        bounds_of(model).expected = lengths


def _remember(bounds: Bounds, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    ends = kwargs.get("cu_seq_lens_q")
    expected, bounds.expected = bounds.expected, None
    bounds.packed = {name: kwargs[name] for name in _PACKED_ARGUMENTS if kwargs.get(name) is not None}
    if ends is None or expected is None or len(expected) != len(ends) - 1:
        expected = None if ends is None else ends.diff().tolist()
    bounds.set(expected)
    if bounds.own_way and expected is not None:  # on the host, too, for kernels that would ask the device for it
        bounds.packed["cu_seqlens_cpu"] = torch.tensor([0, *expected]).cumsum(0)


def _documentwise(module: torch.nn.Module, bounds: Bounds) -> Callable[..., Any]:
    forward, takes_mask, kind = module.forward, _is_attention(module), type(module).__name__
    signature = inspect.signature(forward)
    hidden = next(iter(signature.parameters))

    @torch.compiler.disable
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if bounds.lengths is None:
            return forward(*args, **kwargs)
        if kind in bounds.own_way:
            packed = {bounds.own_way[kind].get(name, name): value for name, value in bounds.packed.items()}
            return _own_way(module, forward, bounds.training, args, {**packed, **kwargs})
        given = _arguments(signature, args, kwargs, takes_mask=takes_mask)
        shape = given[hidden].shape[:2]
        out: list[torch.Tensor] = []
        for group in bounds.indices(given[hidden].device):
            result = forward(**{name: _rows(value, shape, group.rows) for name, value in given.items()})
            values, rest = _with_rows(result, group.rows.shape)
            out = out or [part.new_zeros(shape.numel(), *part.shape[2:]) for part in values]
            out = [_put(whole, part, group) for whole, part in zip(out, values, strict=True)]
        whole_row = tuple(part.unflatten(0, shape) for part in out)
        return (*whole_row, *rest) if isinstance(result, tuple) else whole_row[0]

    return run


def _own_way(module: torch.nn.Module, forward: Callable[..., Any], training: bool, args: Any, kwargs: Any) -> Any:
    """The packed row in one call, its bounds among the arguments."""
    was_training = module.training
    module.training = was_training or training  # not of what lies inside it: that may have dropout
    try:
        return forward(*args, **kwargs)
    finally:
        module.training = was_training


def _put(whole: torch.Tensor, rows: torch.Tensor, group: Group) -> torch.Tensor:
    return whole.index_put((group.places,), rows.flatten(0, 1)[group.kept])


def _with_rows(result: Any, shape: torch.Size) -> tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]:
    """A layer's results that have a value for each token, which come first, and the others."""
    parts = result if isinstance(result, tuple) else (result,)
    values = tuple(takewhile(lambda part: isinstance(part, torch.Tensor) and part.shape[:2] == shape, parts))
    return values, parts[len(values) :]


def _arguments(signature: inspect.Signature, args: Any, kwargs: dict[str, Any], *, takes_mask: bool) -> dict[str, Any]:
    """All arguments by name, without what describes the packed row, and without masks unless attention needs one."""
    bound = signature.bind_partial(*args, **kwargs).arguments
    var_keyword = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    given = {**bound, **bound.pop(var_keyword, {})} if var_keyword else dict(bound)
    for name in _MASKS:
        if name in given and not (takes_mask and _is_quadratic(given[name])):
            given[name] = None
    return {name: value for name, value in given.items() if name not in _PACKED_ARGUMENTS}


def _is_quadratic(mask: Any) -> bool:
    return isinstance(mask, torch.Tensor) and mask.ndim == 4


def _rows(value: Any, shape: torch.Size, index: torch.Tensor) -> Any:
    """The documents' part of an argument that has a value for each token, such as positions or rotary embeddings, or
    for each pair of tokens."""
    if isinstance(value, tuple):
        return tuple(_rows(part, shape, index) for part in value)
    if isinstance(value, dict):
        return {name: _rows(part, shape, index) for name, part in value.items()}
    if _is_quadratic(value):
        return _mask_rows(value[0, 0], index)
    if isinstance(value, torch.Tensor) and value.shape[:2] == shape:
        return value.flatten(0, 1)[index]
    return value


def _mask_rows(mask: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(documents, 1, longest, longest) of the mask of the packed row, (tokens, tokens): added, or true where seen."""
    nothing = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    padded = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool, device=index.device).triu(1)
    return mask[index[:, :, None], index[:, None, :]].masked_fill(padded, nothing)[:, None]
