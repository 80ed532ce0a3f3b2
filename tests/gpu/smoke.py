"""What the machine can do, and the GPU code that no test of this folder reaches; each finding is a figure.

python -m tests.gpu.smoke [--dry-run]
"""

from __future__ import annotations

import argparse
import inspect
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu import figures, stand_in


def main(argv: list[str] | None = None) -> int:
    """Every check, whatever the others do; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes and the kernel's stand-in")
    dry = parser.parse_args(argv).dry_run
    if dry:
        stand_in.install()
    failed = [work.__name__ for work in CHECKS if not checked(work, Bench(dry))]
    print(f"failed: {', '.join(failed)}" if failed else "all well", flush=True)
    return int(bool(failed))


class Bench:
    """The device, and sizes for it."""

    def __init__(self, dry: bool) -> None:
        self.dry, self.device = dry, "cpu" if dry else "cuda"

    def size(self, on_gpu: Any, on_cpu: Any) -> Any:
        """The one that suits the device."""
        return on_cpu if self.dry else on_gpu

    def randn(self, *shape: int, **options: Any) -> torch.Tensor:
        """On the device."""
        return torch.randn(*shape, device=self.device, **options)

    def milliseconds(self, work: Callable[[], Any], times: int = 10) -> float:
        """Median on the device, after three warm-ups."""
        for _ in range(self.size(3, 1)):
            work()
        return round(statistics.median(self._once(work) for _ in range(self.size(times, 1))), 3)

    def _once(self, work: Callable[[], Any]) -> float:
        if self.dry:
            begun = time.perf_counter()
            work()
            return (time.perf_counter() - begun) * 1000
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)


def checked(work: Callable[[Bench], Any], bench: Bench) -> bool:
    """Note what a check finds, or what went wrong in it."""
    begun = time.perf_counter()
    try:
        found, well = work(bench), True
    except Exception as error:  # one failure must not cost the others
        found, well = {"error": f"{type(error).__name__}: {error}"[:600]}, False
    figures.note({work.__name__: {**found, "seconds": round(time.perf_counter() - begun, 2)}})
    return well


def computer(bench: Bench) -> dict[str, Any]:
    """What a GPU brings beside its name, and what compilation and saving need."""
    found: dict[str, Any] = {"commands": {name: shutil.which(name) for name in ("nvcc", "gcc", "g++", "ninja")}}
    found["tmp_free_gib"] = round(shutil.disk_usage(tempfile.gettempdir()).free / 2**30, 1)
    lines = Path("/proc/meminfo").read_text().splitlines()
    found["memory"] = [line for line in lines if line.startswith(("MemTotal", "MemAvailable"))]
    found["cuda_home"] = os.environ.get("CUDA_HOME")
    if not bench.dry:
        found |= {"gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        found |= {"cuda": torch.version.cuda, "nccl": torch.cuda.nccl.version()}
    return found


def ceilings(bench: Bench) -> dict[str, float]:
    """Large matrix products, those of the 1.7B and 8B shapes, and a copy within the device's memory."""
    found = {}
    sizes = [(8192, 8192, 8192), (8192, 2048, 6144), (8192, 6144, 2048), (8192, 2048, 2048), (16384, 4096, 12288)]
    for m, k, n in bench.size(sizes, [(64, 32, 48)]):
        a, b = bench.randn(m, k, dtype=torch.bfloat16), bench.randn(k, n, dtype=torch.bfloat16)
        milliseconds = bench.milliseconds(lambda a=a, b=b: a @ b)
        found[f"matmul {m}x{k}x{n} TFLOP/s"] = round(2 * m * k * n / milliseconds / 1e9, 1)
    source = torch.empty(bench.size(2**31, 2**20), device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    found["copy TB/s"] = round(2 * len(source) / bench.milliseconds(lambda: target.copy_(source)) / 1e9, 3)
    return found


def kernel(bench: Bench) -> dict[str, Any]:
    """The varlen kernel as a model calls it: what it takes, rows of single tokens, and its speed."""
    from torch.nn.attention.varlen import varlen_attn

    from train.model import attention

    found: dict[str, Any] = {"takes": list(inspect.signature(varlen_attn).parameters)}
    if lacks := attention._kernel_lacks():
        raise RuntimeError(f"auto passes varlen over, as the kernel takes no {', '.join(lacks)}: {found['takes']}")
    for name, lengths in (("single tokens", [1, 1, 1]), ("one token", [1]), ("one document", [77])):
        out, tensors = attend(bench, lengths)
        out.float().square().sum().backward()
        # The first token attends to itself alone; its head 0 shares the values of head 0.
        torch.testing.assert_close(out.float()[0, 0, 0], tensors[2][0, 0, 0], rtol=0.02, atol=0.02)
        assert all(torch.isfinite(tensor.grad).all() for tensor in tensors), name
        found[name] = "right"
    rows = {"96 documents of 85": [85] * 96, "1 of 8192": [8192], "4 of 2048": [2048] * 4}
    for name, lengths in bench.size(rows, {"3 of 5": [5] * 3}).items():
        out, _ = attend(bench, lengths)
        grad = torch.randn_like(out)
        found[f"{name}: forward ms"] = bench.milliseconds(lambda n=lengths: attend(bench, n))
        found[f"{name}: backward ms"] = bench.milliseconds(lambda o=out, g=grad: o.backward(g, retain_graph=True))
    return found


def attend(bench: Bench, lengths: list[int], heads: int = 16, kv: int = 8, dim: int = 128) -> tuple[Any, list[Any]]:
    """Output, and queries, keys and values: laid out as a model does, queries and keys in fp32, as norms leave them."""
    from train.model import varlen

    module = torch.nn.Linear(1, 1, device=bench.device, dtype=torch.bfloat16)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(bench.device, torch.int32)
    tensors = [bench.randn(1, sum(lengths), h, dim, requires_grad=True) for h in (heads, kv, kv)]
    given = [tensors[0].transpose(1, 2), tensors[1].transpose(1, 2), tensors[2].to(torch.bfloat16).transpose(1, 2)]
    with torch.autocast(bench.device, torch.bfloat16):
        out, _ = varlen.varlen_forward(module, *given, None, cu_seq_lens_q=ends, max_length_q=max(lengths))
    return out, tensors


def loss_head(bench: Bench) -> dict[str, Any]:
    """TRL's fused head in the 1.7B shape: the trained tokens of one row, weights in fp32 under autocast."""
    from trl.kernels import ChunkedLogProbFunction

    tokens, width, words = bench.size((5700, 2048, 151936), (20, 8, 50))
    weight = bench.randn(words, width).mul_(0.02).requires_grad_()
    hidden, targets = bench.randn(tokens, width, requires_grad=True), torch.randint(0, words, (tokens,))
    targets = targets.to(bench.device)

    def log_probs() -> torch.Tensor:
        with torch.autocast(bench.device, torch.bfloat16):
            outputs = ("log_probs", "is_top1")
            return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, outputs)[0]

    with torch.no_grad():
        logits = hidden[:16].to(torch.bfloat16).float() @ weight.to(torch.bfloat16).float().T
        expected = logits.log_softmax(-1).gather(1, targets[:16, None])[:, 0]
        error = (log_probs()[:16] - expected).abs().max().item()
    assert error < 0.1, f"log-probabilities differ by {error}"
    both = bench.milliseconds(lambda: log_probs().sum().backward(), 5)
    return {"forward ms": bench.milliseconds(log_probs, 5), "both ms": both, "largest error": round(error, 5)}


def optimizer(bench: Bench) -> dict[str, Any]:
    """Clipping and the fused AdamW on the 1.7B shape's weights in fp32."""
    large = [(151936, 2048), *28 * [(6144, 2048), (6144, 2048), (2048, 6144), (2048, 6144)]]
    weights = [torch.zeros(shape, device=bench.device, requires_grad=True) for shape in bench.size(large, [(8, 8)])]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    fused = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    clip = bench.milliseconds(lambda: torch.nn.utils.clip_grad_norm_(weights, 1.0), 5)
    return {"weights": sum(w.numel() for w in weights), "clip ms": clip, "step ms": bench.milliseconds(fused.step, 5)}


def snapshot(bench: Bench) -> dict[str, Any]:
    """Copies of states into pinned memory: right, how fast, and how much memory they take."""
    from train.checkpoint.host_copies import CopyMemory

    base = bench.randn(bench.size(300_000_000, 10_000))  # 1.1 GiB of fp32: no power of two
    states = {"a": base, "view": base[5:105].view(10, 10), "step": torch.tensor(3.0), "n": 7}
    states |= {f"w{i}": bench.randn(2048, bench.size(6144, 6)) for i in range(8)}
    memory, found = CopyMemory(), {}
    for turn in ("first", "second"):
        begun = time.perf_counter()
        copied = memory.snapshot(states)
        seconds = time.perf_counter() - begun
        nbytes = sum(copied[name].untyped_storage().nbytes() for name in copied if name not in ("view", "n"))
        for name in (name for name, value in states.items() if torch.is_tensor(value)):
            assert torch.equal(copied[name], states[name].cpu()), name
        assert copied["view"].untyped_storage().data_ptr() == copied["a"].untyped_storage().data_ptr()
        found[f"{turn} GB/s"] = round(nbytes / seconds / 1e9, 2)
        memory.release()
    found["copied GiB"], found["counted GiB"] = round(nbytes / 2**30, 3), round(memory.size / 2**30, 3)
    if not bench.dry:
        assert copied["a"].is_pinned()
        stats = torch.cuda.host_memory_stats()
        found["pinned"] = {name: value for name, value in stats.items() if name.endswith("bytes.peak")}
    return found


def pinning(bench: Bench) -> dict[str, Any]:
    """What new pinned memory costs: by torch, or touched by several threads first; and what a step loses beside it."""
    size, matrix = bench.size(2**31, 2**20), bench.randn(*[bench.size(8192, 8)] * 2)
    buffer = torch.empty(size, dtype=torch.uint8)
    found = {"touch GB/s": rate(size, buffer.zero_)}
    register, unregister = (lambda: 0, lambda: 0) if bench.dry else registration(buffer)
    found["register GB/s"] = rate(size, register)
    found["alone ms"] = bench.milliseconds(lambda: matrix @ matrix, 20)
    thread = threading.Thread(target=torch.empty, args=(size,), kwargs={"pin_memory": not bench.dry})
    thread.start()
    found["beside ms"] = bench.milliseconds(lambda: matrix @ matrix, 20)
    thread.join()
    unregister()
    return found


def rate(size: int, work: Callable[[], Any]) -> float:
    """GB/s of work on that many bytes by the host."""
    begun = time.perf_counter()
    work()
    return round(size / (time.perf_counter() - begun) / 1e9, 2)


def registration(buffer: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What pins the memory of a tensor of the host, and what lets it go."""
    runtime: Any = torch.cuda.cudart()

    def register() -> None:
        error = runtime.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)
        assert int(error) == 0 and buffer.is_pinned(), error

    return register, lambda: runtime.cudaHostUnregister(buffer.data_ptr())


def answers(bench: Bench) -> dict[str, Any]:
    """Generation inside training: weights in fp32 under autocast, varlen attention and a cache, as with sdpa."""
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

    from train.model import varlen

    varlen.register()
    shape = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 299}
    asked |= {"return_dict_in_generate": True, "output_scores": True}
    found = {}
    for name in (varlen.NAME, "sdpa"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen3Config(**shape), attn_implementation=name).to(bench.device).eval()
        ids = torch.arange(4, 40, device=bench.device)[None]
        mask, config = torch.ones_like(ids), GenerationConfig(**asked)
        with torch.no_grad(), torch.autocast(bench.device, torch.bfloat16):
            found[name] = model.generate(ids, attention_mask=mask, generation_config=config)
    ours, theirs = found[varlen.NAME], found["sdpa"]
    # The tokens may part where two are nearly as likely, as random weights make them.
    torch.testing.assert_close(ours.scores[0].float(), theirs.scores[0].float(), rtol=0.05, atol=0.05)
    equal = (ours.sequences == theirs.sequences).sum().item() - ids.shape[1]
    return {"answer": ours.sequences.shape[1] - ids.shape[1], "equal tokens": equal}


CHECKS = (computer, kernel, ceilings, loss_head, optimizer, snapshot, pinning, answers)

if __name__ == "__main__":
    sys.exit(main())
