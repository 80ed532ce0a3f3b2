"""The page that preflight prints about memory."""

from __future__ import annotations

from collections.abc import Iterator

from train.memory.changes import cheapest, suggestion
from train.memory.estimate import GIB, MARGIN, Estimate
from train.memory.fit import Fit
from train.memory.setting import Setting
from train.memory.states import trained

_WIDTH = 13  # of the first column, as in preflight's other lines


def lines(fit: Fit, reason: str) -> Iterator[str]:
    """Memory of one GPU by part, whether it fits, and what would.

    Args:
        reason: why this attention.
    """
    setting, found = fit.setting, fit.estimate
    yield _line("parameters", _parameters(fit))
    yield _line("attention", f"{setting.attention} ({reason.partition(';')[0]})")
    yield _line("memory", f"of one {_device(setting)}, {setting.sharding}, at its fullest: {found.moment}")
    for name, size in found.parts.items():
        yield _line("", f"{name:<29}{gib(size):>12}{_remark(name, fit, found)}")
    if setting.on_gpu:
        yield _line("", f"{'margin for fragmentation':<29}{gib(found.margin):>12}  {MARGIN:.0%}, as measured")
        yield _line("", f"{'CUDA context, NCCL':<29}{gib(found.outside):>12}  assumed")
    yield _line("", f"{'together':<29}{gib(found.needed):>12}  memory_peak_gib would be {found.peak / GIB:.2f}")
    if found.host or found.paged:
        yield _line("host memory", _host(found))
    yield from _verdict(fit)


def suggestion_lines(fit: Fit) -> Iterator[str]:
    """What `--suggest` proposes for these GPUs."""
    change = suggestion(fit)
    if change is None:
        yield _line("suggestion", "nothing fits these GPUs with these rows a step: more GPUs, shorter rows or LoRA")
        return
    needed = fit.of(change.setting).needed
    yield _line("suggestion", f"{change.setting.sharding}, {gib(needed)} of {gib(fit.limit or needed)}:")
    setting = change.setting
    yield f"per_device_train_batch_size: {setting.rows}"
    yield f"gradient_accumulation_steps: {setting.accumulation}"
    yield f"gradient_checkpointing: {str(setting.checkpointing).lower()}"
    yield f"# --accelerate_config configs/accelerate/{change.launch}.yaml"


def _verdict(fit: Fit) -> Iterator[str]:
    if fit.limit is None:
        yield _line("fits", "not known: give --gpu_memory_gib, the memory of one GPU")
        return
    share = f"{gib(fit.estimate.needed)} of {gib(fit.limit)}"
    most = fit.largest_rows(fit.setting)
    if fit.fits(fit.setting):
        yield _line("fits", f"yes, {share}; the largest per_device_train_batch_size that does: {most}")
        return
    yield _line("fits", f"NO, {share}; the largest per_device_train_batch_size that does: {most or 'none'}")
    change = cheapest(fit)
    if change is None:
        yield _line("change", "no checkpointing, ZeRO stage or offload makes it fit: more GPUs, shorter rows or LoRA")
        return
    yield _line("change", f"the cheapest that fits, with {gib(fit.of(change.setting).needed)}:")
    yield from (_line("", text) for text in change.lines(fit.setting))


def notes(fit: Fit) -> Iterator[str]:
    """What the numbers do not take into account."""
    setting = fit.setting
    if fit.skeleton.stateful:
        yield _way_of_states(fit)
    if setting.compiled:
        yield (
            "memory: counted without torch_compile, which keeps less: 8 % less was measured for a model of 1.7B "
            "(docs/gpu.md)"
        )
    if setting.liger:
        yield "memory: counted without use_liger_kernel, whose kernels keep less"
    if setting.on_gpu and setting.attention in ("sdpa", "eager"):
        yield f"memory: counted with the CPU's {setting.attention}; a GPU's may keep its mask in another form"
    if setting.row_ranks > 1:
        yield "memory: counted without the buffers in which ranks exchange tokens for heads"
    if setting.sharding.kind == "ddp" and setting.on_gpu:
        yield "memory: counted for DDP; a launch file (--accelerate_config) says how the processes shard"
    yield "memory: the longest rows, each token trained; evaluations and sample answers are not counted"


def _way_of_states(fit: Fit) -> str:
    layers = ", ".join(f"{number} {name}" for name, number in fit.skeleton.stateful.items())
    kernels = "; kernels with document bounds keep less" if fit.setting.on_gpu else ""
    return f"memory: layers that carry a state counted document by document ({layers}){kernels}"


def _parameters(fit: Fit) -> str:
    weights = fit.estimate.traced.weights
    number = sum(p.numel() for p in fit.skeleton.model.parameters())
    learning = trained(weights)
    share = "all trained" if not fit.setting.adapters else f"and adapters; {learning:,} trained"
    copies = ", computed with copies in bfloat16" if fit.setting.copies else f", precision {fit.setting.precision}"
    stored = fit.setting.dtype if fit.setting.copies else fit.setting.model_dtype
    return f"{number:,} of the model, {share}; weights in {stored}{copies}"


def _remark(name: str, fit: Fit, found: Estimate) -> str:
    setting, traced = fit.setting, found.traced
    if name == "activations":
        how = ", checkpointing" if setting.checkpointing else ""
        how += ", offloaded" if setting.activation_offloading else ""
        return f"  {len(fit.skeleton.kinds)} layers of {traced.layer / GIB:.3f} GiB, {setting.tokens:,} tokens{how}"
    if name == "optimizer states":
        return f"  {setting.optim}{', with fp32 weights' if setting.sharding.kind == 'zero' else ''}"
    if name == "files of packed weights":
        return "  embeddings and norms are views of them; on a GPU they are not kept"
    if name == "weights" and setting.bits:
        return f"  in {setting.bits} bits but for embeddings, head and adapters"
    return ""


def _host(found: Estimate) -> str:
    texts = [f"{gib(found.host)} for each process"] if found.host else []
    texts += (
        [f"{gib(found.paged)} of optimizer states are paged: on the GPU while there is room"] if found.paged else []
    )
    return "; ".join(texts)


def _device(setting: Setting) -> str:
    return "GPU" if setting.on_gpu else "CPU process"


def _line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}{text}"


def gib(size: float) -> str:
    """For a person."""
    return f"{size / GIB:,.2f} GiB" if size < 1000 * GIB else f"{size / GIB:,.0f} GiB"
