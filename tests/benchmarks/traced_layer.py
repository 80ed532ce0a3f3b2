"""What one layer does in a training step, counted without a GPU and without memory: on fake tensors.

`eager` counts each operation as torch runs it. `compiled` lets inductor plan its kernels and counts what each of them
reads and writes; nothing is compiled. Forward and backward pass, one micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.benchmarks.gpu_arithmetic import give_fake_weights, model_without_storage
from train.model import varlen
from train.model.bf16_copies import Bf16Copies
from train.model.lora_inputs import leave_as_they_are

PRODUCTS = ("mm", "addmm", "bmm")
ATTENTION = ("_varlen_attn", "_varlen_attn_backward")
DOCUMENTS = 96  # of a packed row; their number does not change what is counted


@dataclass
class Work:
    """Of one layer and micro-batch."""

    operations: float = 0  # floating-point, of matrix products
    attention_bytes: float = 0  # read and written by attention
    bytes: float = 0  # read and written by all else but matrix products
    kernels: int = 0
    kept: float = (
        0  # bytes that a compiled layer keeps for its backward pass, its output among them; eager: not counted
    )

    def add(self, kind: str, size: float) -> None:
        """One kernel: `kind` is an operator's name."""
        self.kernels += 1
        if kind in ATTENTION:
            self.attention_bytes += size
        elif kind not in PRODUCTS:
            self.bytes += size


def eager(shape: dict[str, Any], tokens: int, *, lora: bool, checkpointing: bool) -> Work:
    """As torch runs it."""
    with fake_layer(shape, tokens, lora=lora, checkpointing=checkpointing) as (layer, given):
        with Counting() as counting:
            run(layer, given)
        return counting.work


def compiled(shape: dict[str, Any], tokens: int, *, lora: bool, checkpointing: bool, copies: bool = False) -> Work:
    """As inductor's kernels, one layer compiled by itself.

    Inductor plans for the device of the tensors, here a CPU. It differs for a concatenation: on a GPU it is computed
    where it is read, if all that reads it is elementwise (torch/_inductor/lowering.py, `cat`), as in rotary embeddings;
    on a CPU it is always written to memory first.

    Args:
        copies: bf16 copies of the weights instead of autocast.
    """
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    work = Work()

    def plan(graph: Any) -> Any:
        graph.codegen()
        count_plan(graph, work)
        return SimpleNamespace(call=lambda given: list(graph.module.forward(*given)), __file__="", runner=None)

    with (
        config.patch(fx_graph_cache=False, force_disable_caches=True, force_pointwise_cat=True),
        mock.patch.object(GraphLowering, "compile_to_module", plan),
        fake_layer(shape, tokens, lora=lora, checkpointing=checkpointing, copies=copies) as (layer, given),
    ):
        run(torch.compile(layer), given)
    torch._dynamo.reset()
    return work


def count_plan(graph: Any, work: Work) -> None:
    """The kernels of one of inductor's graphs, and the products of its operators."""
    for node, elements in graph.count_bytes()[1]:
        name = (getattr(node.node, "python_kernel_name", None) or "").removesuffix(".default").rpartition(".")[2]
        if elements:
            work.add(name, 4 * elements)
    for node in graph.module.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "overloadpacket", None):
            sizes = [arg.meta["val"].shape for arg in node.args if isinstance(arg, torch.fx.Node)]
            work.operations += operations(node.target.overloadpacket.__name__, sizes)
    if not graph.is_backward:
        (given_out,) = next(node for node in graph.module.graph.nodes if node.op == "output").args
        made = {node for node in given_out if isinstance(node, torch.fx.Node) and node.op != "placeholder"}
        work.kept += sum(size(node.meta["val"]) for node in made if isinstance(node.meta["val"], torch.Tensor))


class Counting(TorchDispatchMode):
    """Counts each operation that moves data. A view moves none."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it and count it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        view = any(is_same(a, b) for a in written for b in read) and not func._schema.is_mutable
        if view or not written or name.startswith("empty"):
            return result
        self.work.add(name, sum(map(size, [*read, *written])))
        self.work.operations += operations(name, [x.shape for x in read])
        return result


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are views of the same memory."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def size(tensor: torch.Tensor) -> int:
    """Bytes that a kernel moves to read or write it; one that is expanded lies in memory once."""
    whole = tensor.numel() * tensor.element_size()
    return min(whole, tensor.untyped_storage().nbytes())


def operations(name: str, sizes: list[Any]) -> float:
    """Of a matrix product of these inputs; 0 of all else."""
    if name not in PRODUCTS:
        return 0
    left, right = sizes[-2:]
    batch = left[0] if name == "bmm" else 1
    return 2.0 * batch * left[-2] * left[-1] * right[-1]


@contextlib.contextmanager
def fake_layer(
    shape: dict[str, Any], tokens: int, *, lora: bool, checkpointing: bool, copies: bool = False
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A decoder layer with fake weights in training mode, and what it is called with, under bf16 autocast or with bf16
    copies of its weights."""
    model = model_without_storage({**shape, "num_hidden_layers": 1}, lora)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(varlen, "_has_kernel", lambda query: True),
        torch.autocast("cpu", torch.bfloat16, enabled=not copies),
    ):
        give_fake_weights(model)
        if lora:
            leave_as_they_are(model, torch.device("cuda"))
        stream = torch.bfloat16 if lora or copies else torch.float32
        angles = torch.zeros(1, tokens, shape["head_dim"], dtype=stream)
        given = {"hidden_states": torch.zeros(1, tokens, shape["hidden_size"], dtype=stream, requires_grad=True)}
        given |= {"position_embeddings": (angles, angles), "attention_mask": None, "max_length_q": 300}
        given["cu_seq_lens_q"] = torch.zeros(DOCUMENTS + 1, dtype=torch.int32)
        given["position_ids"] = torch.zeros(1, tokens, dtype=torch.long)
        with Bf16Copies(model).in_place() if copies else contextlib.nullcontext():
            yield model.train().model.layers[0], given


def run(layer: Any, given: dict[str, Any]) -> None:
    """Forward and backward."""
    rest = dict(given)
    out = layer(rest.pop("hidden_states"), **rest)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(torch.empty_like(out))
