"""Where the time of a training step goes on a GPU, by account: no GPU is needed.

    python -m tests.benchmarks.roofline [--device h100|h200]

Operations and bytes of a step are counted on fake tensors (tests/benchmarks/traced_layer.py: each operation as torch
runs it, or each kernel as inductor plans it), or follow from the number of weights. Time is operations by the rate of
matrix products plus bytes by the memory's: nothing overlaps, and the host is never waited for. So an account is what a
device could do with the kernels as they are. Rates of the H100 are fixed (650 TFLOP/s of 989 in products, 2.7 TB/s of
3.35), those of the H200 are what tests/gpu/smoke.py measured on one.

Documents have Alpaca's lengths, rows 8,192 tokens. The last line is JSON. `cases` has for each way to train a shape
`mfu`, `mfu_6n`, `step_ms`, `tokens_per_second`, `parts` (ms), and where tests/benchmarks/results has figures of that
device `measured_step_ms` (median step), `measured_to_account`, and from a profile `measured_parts`. `hybrid` is what
groups of documents cost a model with linear attention: see tests/benchmarks/hybrid_account.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.benchmarks import gpu_arithmetic as arithmetic
from tests.benchmarks import hybrid_account
from tests.benchmarks.gpu_inputs import SHAPES, make_documents

SEQ_LEN = 8192
PEAK = 989e12  # dense bf16 operations a second of both devices
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Device:
    """What it attains."""

    products: float  # operations a second
    memory: float  # bytes a second
    attention: float  # bytes a second that the attention kernel reads and writes, for documents of 85 tokens
    name: str  # in the names of results

    def product_ms(self, operations: float) -> float:
        """Of matrix products."""
        return 1000 * operations / self.products

    def memory_ms(self, size: float) -> float:
        """Of kernels that only move data."""
        return 1000 * size / self.memory


DEVICES = {
    "h100": Device(products=650e12, memory=2.7e12, attention=0.69e12, name="nvidia_h100"),
    "h200": Device(products=708e12, memory=4.0e12, attention=0.69e12, name="nvidia_h200"),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to train a shape."""

    shape: str
    compiled: bool
    checkpointing: bool = False
    copies: bool = False  # bf16_copies
    kept_logits: bool = False  # keep_logits_gib: logits are not computed a second time
    at_once: float = 1  # packed rows of SEQ_LEN tokens in a forward pass
    passes: int = 4  # forward passes of a step
    stage: str | None = None  # of tests/gpu/stages.py, that measures it
    profile: str | None = None  # the stage that measures its parts

    @property
    def lora(self) -> bool:
        """Adapters on frozen weights in bf16, instead of all weights in fp32."""
        return self.shape.endswith("_lora")

    @property
    def tokens(self) -> int:
        """Of a forward pass."""
        return int(self.at_once * SEQ_LEN)

    @cached_property
    def layer(self) -> Any:
        """What a layer does in one forward and backward pass."""
        from tests.benchmarks import traced_layer

        how: dict[str, Any] = {"lora": self.lora, "checkpointing": self.checkpointing}
        if not self.compiled:
            return traced_layer.eager(SHAPES[self.shape], self.tokens, **how)
        return traced_layer.compiled(SHAPES[self.shape], self.tokens, **how, copies=self.copies)


CASES = {
    # As configs/train/example_one_gpu.yaml (8 passes of 3 rows of 4,096) and example_lora_80gb.yaml train.
    "1.7B_full": Case(shape="1.7B", compiled=True, copies=True, kept_logits=True, at_once=1.5, passes=8),
    "8B_lora": Case(shape="8B_lora", compiled=True, kept_logits=True, passes=2, stage="lora_kept_logits"),
    # Without one or the other.
    "1.7B_full_copies_only": Case(shape="1.7B", compiled=True, copies=True, at_once=1.5, passes=8),
    "1.7B_full_copies_one_row": Case(shape="1.7B", compiled=True, copies=True, kept_logits=True, stage="full_copies"),
    "1.7B_full_autocast": Case(shape="1.7B", compiled=True, stage="full_compiled", profile="full_compiled_profile"),
    "1.7B_full_two_rows": Case(shape="1.7B", compiled=True, at_once=2, passes=2, stage="full_two_rows"),
    "1.7B_full_eager": Case(shape="1.7B", compiled=False, stage="full", profile="full_profile"),
    "8B_lora_compiled": Case(shape="8B_lora", compiled=True, passes=2, stage="lora_compiled"),
    "8B_lora_checkpointed": Case(shape="8B_lora", compiled=True, checkpointing=True, at_once=2, passes=1),
    "8B_lora_eager": Case(shape="8B_lora", compiled=False, checkpointing=True, at_once=2, passes=1, stage="lora"),
}


@dataclass(frozen=True)
class Text:
    """Of the documents: shares of a row's tokens."""

    trained: float  # tokens with a label
    pairs: float  # attended pairs for each token


def text() -> Text:
    """Of Alpaca's lengths."""
    documents = make_documents(20_000, 1000)
    lengths = [len(ids) for ids, _ in documents]
    trained = sum(len(ids) - start for ids, start in documents)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    return Text(trained / sum(lengths), pairs / sum(lengths))


def parts(case: Case, device: Device, trained: float) -> dict[str, float]:
    """Milliseconds of a step by what is done.

    Args:
        trained: tokens of a step with a label.
    """
    shape, passes, layer = SHAPES[case.shape], case.passes, case.layer
    layers, head = shape["num_hidden_layers"], arithmetic.head_weights(shape)
    weights = trained_weights(case)
    full = not case.lora
    # Logits forward, TRL's chunked head again backward, the gradient of its input, and of its weights if they train.
    head_products = 2 * head * trained * (2 + full + (not case.kept_logits))
    # bf16 logits: written and read forward; read and overwritten by their gradient backward, TRL's written before.
    tiles = (8 if case.kept_logits else 10) * trained * shape["vocab_size"]
    vocabulary = vocabulary_bytes(case) * head * passes if full else 0
    return {
        "layers: products": device.product_ms(layers * passes * layer.operations),
        "layers: attention": 1000 * layers * passes * layer.attention_bytes / device.attention,
        "layers: all else": device.memory_ms(layers * passes * layer.bytes),
        "head: products": device.product_ms(head_products),
        "head: all else": device.memory_ms(tiles + vocabulary),
        "gradients added up": device.memory_ms(adding_bytes(case) * weights),
        # gradients read, read and written; then weights, gradients and two states read, all but gradients written;
        # weights read and their copies written
        "clipping, optimizer": device.memory_ms((12 + 28 + 6 * case.copies) * weights),
    }


def vocabulary_bytes(case: Case) -> int:
    """Moved in a forward and backward pass for each weight of a tied embedding, beside the products."""
    if case.copies:  # its gradient by the input made in bf16, and added to the head's
        return 2 + 6
    casts = 6 if case.kept_logits else 2 * 6  # fp32 read, bf16 written
    return casts + 4 + 12  # the same gradient in fp32


def adding_bytes(case: Case) -> int:
    """Moved in a step for each trained weight to add the gradients of its passes up, in fp32."""
    if case.copies:  # of the copy read, the sum written; then the sum read as well
        return 6 + 10 * (case.passes - 1)
    return 12 * (case.passes - 1)  # both read, the sum written


def trained_weights(case: Case) -> int:
    """Their number."""
    shape = SHAPES[case.shape]
    if case.lora:
        return arithmetic.adapter_weights(shape)
    layers = shape["num_hidden_layers"] * arithmetic.layer_weights(shape)
    return layers + arithmetic.head_weights(shape) * (1 if shape.get("tie_word_embeddings") else 2)


def account(case: Case, device: Device, lengths: Text) -> dict[str, Any]:
    """Of one case: see the module."""
    shape, tokens = SHAPES[case.shape], case.tokens * case.passes
    found = parts(case, device, lengths.trained * tokens)
    seconds = sum(found.values()) / 1000
    trained, pairs = int(lengths.trained * tokens), lengths.pairs * tokens
    needed = arithmetic.needed_operations(shape, tokens, trained, pairs, lora=case.lora)
    usual = arithmetic.usual_operations(shape, tokens, lora=case.lora)
    return {
        "rows": f"{case.passes} x {case.at_once}",
        "compiled": case.compiled,
        "checkpointing": case.checkpointing,
        "step_ms": round(1000 * seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "mfu": round(needed / seconds / PEAK, 3),
        "mfu_6n": round(usual / seconds / PEAK, 3),
        "parts": {name: round(ms, 1) for name, ms in found.items()},
        "kept_gib_a_layer": round(case.layer.kept / 2**30, 3) if case.compiled else None,
    }


def measured(case: Case, device: Device, step_ms: float) -> dict[str, Any]:
    """What a GPU took for it, where one did."""
    files = sorted(RESULTS.glob(f"gpu_{device.name}*.json"))
    stages = json.loads(files[0].read_text())["stages"] if files else {}
    found: dict[str, Any] = {}
    if case.stage in stages:
        result = stages[case.stage]["result"]
        rows = case.at_once * case.passes
        median = 1000 * statistics.median(result["each_step_seconds"]) * rows / result["rows_per_step"]
        found = {"measured_step_ms": round(median, 1), "measured_to_account": round(median / step_ms, 2)}
    if case.profile in stages:
        found["measured_parts"] = stages[case.profile]["result"]["profile"]["ms_by_kind"]
    return found


def main(argv: list[str] | None = None) -> int:
    """Print the account of each case, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="h100")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    asked = parser.parse_args(argv)
    device, lengths, report = DEVICES[asked.device], text(), {}
    for name in asked.cases:
        found = account(CASES[name], device, lengths)
        report[name] = {**found, **measured(CASES[name], device, found["step_ms"])}
        print(f"{name}: {found['step_ms']:.0f} ms a step, MFU {found['mfu']:.3f}: {found['parts']}", flush=True)
    hybrid = hybrid_account.account(SEQ_LEN, device.products)
    print(json.dumps({"device": asked.device, "cases": report, "hybrid": hybrid}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
