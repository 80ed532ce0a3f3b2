"""What a DeepSpeed file's section "expert_parallel" (AutoEP) cannot be combined with, or would do wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from train.checks.model_files import number_of_experts, text_settings
from train.config.expert_parallel import SECTION, enabled_section
from train.config.run_config import RunConfig

# Model types with a preset in DeepSpeed 0.19.8; each is tested.
TYPES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_5_moe_text"),
    *("deepseek_v2", "deepseek_v3", "minimax_m3_vl_text"),
)
# AutoEP records the router's scores of these where transformers records what is in front of the softmax.
UNBALANCED = ("qwen3_5_moe_text",)
_KEYS = ("enabled", "autoep_size", "use_grouped_mm", "disable_triton_grouped_mm", "load_balance_coeff")
_ZERO_PLUS = ("zero_hpz_partition_size", "zero_quantized_gradients")  # refused by DeepSpeed once the model is loaded
_NOT_COMPARED = "is not compared with the reference together with expert parallelism"


def check_expert_parallel(
    settings: Mapping[str, Any], origin: str, config: RunConfig, processes: int | None
) -> Iterator[str]:
    """Every problem of expert parallelism with the launch, the model and the run config.

    Args:
        settings: the DeepSpeed JSON.
        origin: its name, for messages.
        processes: the world size, if known.
    """
    section = enabled_section(settings)
    if section is None:
        return
    where = f"{origin}: {SECTION}"
    yield from _check_section(section, where)
    yield from _check_size(section.get("autoep_size", 1), where, config, processes)
    yield from _check_zero(settings.get("zero_optimization") or {}, where)
    yield from _check_options(where, config)


def _check_section(section: Mapping[str, Any], where: str) -> Iterator[str]:
    """Of a name that it does not know DeepSpeed takes no notice."""
    if section.get("load_balance_coeff") is not None:
        yield f"{where}: DeepSpeed refuses load_balance_coeff: remove it, router_aux_loss_coef balances the experts"
    if other := sorted(set(section) - set(_KEYS)):
        yield (
            f"{where}: expected {', '.join(_KEYS[:3])}, found {', '.join(other)}: DeepSpeed ignores names that it does "
            "not know, and what other ones do to a layer is not compared with the reference: remove them"
        )


def _check_size(size: Any, where: str, config: RunConfig, processes: int | None) -> Iterator[str]:
    if type(size) is not int or size < 1:
        yield f"{where}.autoep_size: expected a whole number of 1 or more, found {size!r}"
        return
    if processes is not None and processes % size:
        yield (
            f"{where}.autoep_size {size} does not divide the {processes} process(es): each set of {size} processes "
            f"holds all experts once; write one of {_divisors(processes)}, or launch a multiple of {size}"
        )
    if text := text_settings(config):
        yield from _check_model(text, size, where, config)


def _check_model(text: Mapping[str, Any], size: int, where: str, config: RunConfig) -> Iterator[str]:
    """Of a type that it does not know DeepSpeed replaces nothing, and trains without expert parallelism."""
    kind, experts = str(text.get("model_type")), number_of_experts(text)
    if kind not in TYPES:
        yield (
            f"{where}: expected a mixture of experts of type {', '.join(TYPES)}, found {kind}: use a launch file "
            "without it, such as zero3.yaml"
        )
    elif experts and experts % size:
        sizes = _divisors(experts)
        yield f"{where}.autoep_size {size} does not divide the model's {experts} experts: write one of {sizes}"
    asked = config.value("router_aux_loss_coef")
    coefficient = text.get("router_aux_loss_coef", 0.001) if asked is None else asked  # transformers' default
    if kind in UNBALANCED and coefficient:
        yield (
            f"{where}: the experts' balancing loss (router_aux_loss_coef {coefficient}) of {kind} would silently be "
            "another one: write router_aux_loss_coef: 0.0"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _check_zero(zero: Mapping[str, Any], where: str) -> Iterator[str]:
    stage = zero.get("stage")
    if stage == 0:
        yield f"{where}: expected zero_optimization.stage 1, 2 or 3, found 0: stage 0 {_NOT_COMPARED}"
    devices = {name: (zero.get(name) or {}).get("device") for name in ("offload_optimizer", "offload_param")}
    used = [f"{name} nvme" for name, device in devices.items() if device == "nvme"]
    used += ["zero_quantized_weights"] if zero.get("zero_quantized_weights") else []
    for name in used:
        yield f"{where}: {name} {_NOT_COMPARED}: remove it, or train without expert parallelism"
    yield from _check_stage_3(zero, where) if stage == 3 else ()


def _check_stage_3(zero: Mapping[str, Any], where: str) -> Iterator[str]:
    for name in _ZERO_PLUS:
        value = zero.get(name)
        if value is True or (isinstance(value, int) and value > 1):
            yield f"{where}: DeepSpeed trains no experts with {name}: remove it, or train without expert parallelism"
    if zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        yield (
            f"{where}: expected stage3_gather_16bit_weights_on_model_save: true: DeepSpeed's zero_to_fp32.py rebuilds "
            "no experts, so the run would end without weights"
        )


def _check_options(where: str, config: RunConfig) -> Iterator[str]:
    if config.value("use_peft"):
        yield (
            f"{where}: adapters are refused with it: DeepSpeed does not find the experts under peft's names, and saves "
            "no frozen experts: use a launch file without it, such as zero3.yaml"
        )
    for name in ("torch_compile", "use_liger_kernel", "fp16"):
        if config.value(name):
            yield f"{where}: {name} {_NOT_COMPARED}: leave it out"
    if config.own.sequence_parallel > 1:
        yield f"{where}: sequence_parallel {_NOT_COMPARED}: leave it out"
