"""Kernels that take the bounds of documents: chosen where they keep documents apart, passed over where not."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

import pytest
import torch
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback
from trl.trainer.utils import add_fused_lm_head

from tests.support.packed_documents import assert_equal_gradients, documents, gradients, load, packed
from train.model import document_kernels, documentwise, isolation

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
IDS = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


def lengths_of(seq_idx: torch.Tensor) -> list[int]:
    return seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()


def convolution(reference, honours: bool):
    def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
        parts = x.split(lengths_of(seq_idx), dim=-1) if honours and seq_idx is not None else [x]
        return torch.cat([reference(part, weight, bias, activation=activation) for part in parts], dim=-1)

    return causal_conv1d_fn


def delta_rule(reference, honours: bool):
    def chunk_gated_delta_rule(
        query, key, value, g, beta, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
        cu_seqlens=None, cu_seqlens_cpu=None,
    ):  # fmt: skip
        lengths = cu_seqlens.diff().tolist() if honours and cu_seqlens is not None else [query.shape[1]]
        assert cu_seqlens is None or torch.equal(cu_seqlens.long(), cu_seqlens_cpu)
        outs = [
            reference(q, k, v, g=gate, beta=b, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel)[0]
            for q, k, v, gate, b in zip(
                *(one.split(lengths, dim=1) for one in (query, key, value, g, beta)), strict=True
            )
        ]
        return torch.cat(outs, dim=1), None

    return chunk_gated_delta_rule


def scan(reference, honours: bool):
    def mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
        dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False,
    ):  # fmt: skip
        lengths = lengths_of(seq_idx) if honours and seq_idx is not None else [x.shape[1]]
        more = {"D": D, "z": z, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit}
        parts = zip(*(one.split(lengths, dim=1) for one in (x, dt, B, C)), strict=True)
        outs = [reference(px, pdt, A, pB, pC, chunk_size=chunk_size, **more) for px, pdt, pB, pC in parts]
        return torch.cat([out[0] if isinstance(out, tuple) else out for out in outs], dim=1)

    return mamba_chunk_scan_combined


def fused(mixes: bool):
    """In training alone; where it mixes, each token sees all before it in the row."""

    def mamba_split_conv1d_scan_combined(zxbcdt, *args, outproj_weight=None, seq_idx=None, **kwargs):
        return zxbcdt.cumsum(1)[..., : outproj_weight.shape[0]] if mixes else None

    return mamba_split_conv1d_scan_combined


class Package:
    """Kernels of a package that is not installed."""

    def __init__(self, monkeypatch, module: str):
        self.monkeypatch, self.module = monkeypatch, sys.modules[module]
        self.package = ModuleType("stand_in_kernels")
        monkeypatch.setitem(sys.modules, "stand_in_kernels", self.package)
        monkeypatch.setattr(document_kernels, "_on_gpu", lambda layer: True)

    def add(self, attribute: str, make, *options) -> None:
        reference = inspect.unwrap(getattr(self.module, attribute))
        kernel = make(reference, *options) if make is not fused else make(*options)
        setattr(self.package, kernel.__name__, kernel)
        wrapped = use_kernel_func_from_hub_with_fallback(kernel.__name__, "stand_in_kernels")(reference)
        self.monkeypatch.setattr(self.module, attribute, wrapped)


@pytest.fixture
def hybrid(tiny_model_dir, monkeypatch):
    """A model of one architecture and the package of its stand-in kernels."""

    def make(architecture: str):
        model = load(tiny_model_dir(architecture)).train()
        add_fused_lm_head(model)
        documentwise.install(model)
        layer = next(iter(documentwise.mixers(model).values()))
        return model, Package(monkeypatch, type(layer).__module__)

    return make


def choose(model) -> str:
    (line,) = document_kernels.choose(model, lambda: isolation.check(model, IDS, CPU, torch.float32))
    return line


def kernels(package: Package, architecture: str, honours: bool) -> None:
    package.add("causal_conv1d_fn", convolution, honours)
    if architecture in ("qwen3_5_text", "olmo_hybrid"):
        package.add("torch_chunk_gated_delta_rule", delta_rule, honours)
    if architecture == "mamba2":
        package.add("mamba2_chunk_scan", scan, honours)
        package.add("mamba2_split_conv1d_scan_combined", fused, False)


@pytest.mark.parametrize("architecture", ["lfm2", "qwen3_5_text", "mamba2"])
def test_kernels_that_honour_bounds_are_chosen_and_equal_separate_documents(architecture, hybrid):
    model, package = hybrid(architecture)
    parts = documents()
    expected = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in parts])
    wanted = gradients(model, expected, torch.cat(parts))
    kernels(package, architecture, honours=True)
    line = choose(model)
    assert line.endswith("kernels with document bounds (stand_in_kernels)")
    found = packed(model, parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert_equal_gradients(gradients(model, found, torch.cat(parts)), wanted)


def test_the_row_is_one_call_then(hybrid):
    model, package = hybrid("lfm2")
    kernels(package, "lfm2", honours=True)
    assert "kernels with" in choose(model)
    rows = []
    layer = next(iter(documentwise.mixers(model).values()))
    layer.in_proj.register_forward_hook(lambda module, args, output: rows.append(tuple(output.shape[:2])))
    parts = documents()
    packed(model, parts)
    assert rows == [(1, sum(map(len, parts)))]


@pytest.mark.parametrize("architecture", ["lfm2", "qwen3_5_text", "mamba2"])
def test_kernels_that_ignore_bounds_are_passed_over(architecture, hybrid):
    model, package = hybrid(architecture)
    kernels(package, architecture, honours=False)
    assert "one document a row, as the proof fails with its kernels: this model does not keep" in choose(model)
    assert not documentwise.bounds_of(model).own_way
    isolation.check(model, IDS, CPU, torch.float32)


def test_a_kernel_of_training_alone_is_proven_too(hybrid):
    """Mamba-2 calls another one in eval mode, in which the proof runs."""
    model, package = hybrid("mamba2")
    kernels(package, "mamba2", honours=True)
    package.add("mamba2_split_conv1d_scan_combined", fused, True)
    assert "one document a row, as the proof fails with its kernels" in choose(model)


def test_a_kernel_that_fails_is_passed_over(hybrid):
    def broken(reference):
        def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
            raise RuntimeError("no kernel image is available")

        return causal_conv1d_fn

    model, package = hybrid("lfm2")
    package.add("causal_conv1d_fn", broken)
    assert "no kernel image is available" in choose(model)


def test_a_kernel_without_bounds_is_passed_over(hybrid):
    def older(reference):
        def causal_conv1d_fn(x, weight, bias=None, activation=None):
            return reference(x, weight, bias, activation=activation)

        return causal_conv1d_fn

    model, package = hybrid("lfm2")
    package.add("causal_conv1d_fn", older)
    assert choose(model).endswith("causal_conv1d_fn of stand_in_kernels takes no document bounds")


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [
        ("lfm2", "causal-conv1d is"),
        ("qwen3_5_text", "causal-conv1d and flash-linear-attention are"),
        ("bamba", "causal-conv1d and mamba-ssm are"),
    ],
)
def test_what_is_not_installed_is_named(architecture, missing, tiny_model_dir, monkeypatch):
    model = load(tiny_model_dir(architecture))
    documentwise.install(model)
    layer = next(iter(documentwise.mixers(model).values()))
    assert document_kernels.lacks(layer) == "their kernels need a GPU"
    if any(kernel.installed for kernel in document_kernels.kernels_of(layer)):
        pytest.skip("installed here")
    monkeypatch.setattr(document_kernels, "_on_gpu", lambda layer: True)
    assert document_kernels.lacks(layer) == f"{missing} not installed: pip install '.[hybrid]'"


def test_layers_without_kernels_say_so():
    assert "calls no kernel" in document_kernels.lacks(torch.nn.GRU(2, 2))
