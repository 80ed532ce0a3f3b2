"""The setting and the model of a run, from its run config, its launch and its shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.shards import Manifest
from train.checks.launch import Launch
from train.checks.parallel_sizes import REPLICATE
from train.config.run_config import RunConfig, build_model_config
from train.memory.setting import BYTES, Setting, Sharding


def setting_of(
    config: RunConfig, manifest: Manifest, launch: Launch | None, processes: int, model_config: Any
) -> Setting:
    """The step that this run makes.

    Args:
        processes: world size.
        model_config: transformers' config of the model.
    """
    return Setting(
        rows=config.value("per_device_train_batch_size"),
        seq_len=manifest["seq_len"],
        row_ranks=config.own.sequence_parallel,
        accumulation=config.value("gradient_accumulation_steps"),
        dtype=_dtype(config, model_config),
        file_dtype=str(model_config.dtype).removeprefix("torch.") if model_config.dtype else None,
        precision=config.precision,
        sharding=sharding_of(launch, processes),
        optim=config.optim,
        checkpointing=bool(config.value("gradient_checkpointing")),
        activation_offloading=bool(config.value("activation_offloading")),
        adapters=adapters_of(config),
        bits=_bits(config),
        nested=bool(config.value("use_bnb_nested_quant")),
        liger=bool(config.value("use_liger_kernel")),
        copies=config.own.bf16_copies,
        keep_logits_gib=config.own.keep_logits_gib,
        compiled=any(config.value(f"torch_compile{end}") for end in ("", "_backend", "_mode")),
        on_gpu=not config.value("use_cpu"),
        document_tokens=_document_tokens(manifest),
    )


def sharding_of(launch: Launch | None, processes: int) -> Sharding:
    """How a launch shards. Without a launch, several processes are DDP."""
    kind = launch.distributed_type if launch else "NO"
    if launch and kind == "DEEPSPEED":
        zero: Mapping[str, Any] = launch.deepspeed_settings().get("zero_optimization") or {}
        return Sharding(kind="zero", processes=processes, zero=zero)
    if kind == "FSDP":
        replicas = int(launch.parallelism.get(REPLICATE) or 1) if launch else 1
        return Sharding(kind="fsdp2", processes=processes, replicas=replicas)
    return Sharding(kind="ddp" if processes > 1 else "none", processes=processes)


def adapters_of(config: RunConfig) -> Any:
    """peft's LoraConfig; None where all weights are trained."""
    from trl import get_peft_config

    return get_peft_config(build_model_config(config)) if config.value("use_peft") else None


def load_config(config: RunConfig, *, local: bool = False) -> Any:
    """transformers' config of the run's model.

    Args:
        local: take it from this machine, without asking the hub.

    Raises:
        OSError: it is not here and cannot be fetched.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        config.value("model_name_or_path"),
        revision=config.value("model_revision"),
        trust_remote_code=bool(config.value("trust_remote_code")),
        local_files_only=local,
    )


def _dtype(config: RunConfig, model_config: Any) -> str:
    """Of the weights as they are loaded."""
    asked = config.value("dtype") or "float32"
    if asked == "auto":
        asked = str(getattr(model_config, "dtype", None) or "float32").removeprefix("torch.")
    return asked if asked in BYTES else "float32"


def _bits(config: RunConfig) -> int | None:
    if config.value("load_in_4bit"):
        return 4
    return 8 if config.value("load_in_8bit") else None


def _document_tokens(manifest: Manifest) -> float:
    """Of a document, in the mean, where rows are full."""
    train = manifest["splits"]["train"]
    return train["rows"] * manifest["seq_len"] / max(train["documents"], 1) or manifest["seq_len"]
