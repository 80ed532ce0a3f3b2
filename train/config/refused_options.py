"""Options that are refused, each with its reason: they train packed rows wrongly, break exact resume, or do nothing.

Every reason was checked in the source of the libraries, or measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from train.config.library_options import installed_version, model_options, sft_options


@dataclass(frozen=True)
class Refusal:
    """An option that must keep one of the values that are safe here."""

    safe: tuple[Any, ...]
    reason: str


_PACKED = "the shards hold packed rows already"
_MIX = "documents of a row attend to each other"
_IN_LABELS = "data preparation decides which tokens are trained, and the shards' labels hold it"
_IN_TOKENIZER = "the tokenizer and its chat template come from the shard directory, so that training and serving agree"
_LAUNCH = "how processes are started and sharded belongs in configs/accelerate and configs/deepspeed: put it there"
_UNUSED = "nothing reads it here"

REFUSALS: dict[str, Refusal] = {
    # Packed rows
    "packing": Refusal((False,), f"{_PACKED}; packing them again drops seq_lengths, and {_MIX}"),
    "eval_packing": Refusal((False, None), f"{_PACKED}; packing them again drops seq_lengths, and {_MIX}"),
    "packing_strategy": Refusal(("bfd",), f"{_PACKED}: nothing reads it"),
    "padding_free": Refusal((True,), f"without it TRL adds an attention mask, and {_MIX}"),
    "max_length": Refusal((None,), "rows have their length already: set seq_len in the data recipe and prepare again"),
    "truncation_mode": Refusal(("keep_start",), "nothing is truncated in training: see too_long in the data recipe"),
    "dataset_kwargs": Refusal(
        ({"skip_prepare_dataset": True},), "the rows are tokenized: TRL would prepare them a second time"
    ),
    "dataset_text_field": Refusal(("text",), "the shards hold token ids, not text"),
    "dataset_num_proc": Refusal((None,), "data preparation has its own --num-workers"),
    "shuffle_dataset": Refusal((False,), f"{_UNUSED}; the sampler shuffles the rows in every epoch by data_seed"),
    "completion_only_loss": Refusal((None,), f"{_IN_LABELS}; TRL does not read it with such rows"),
    "assistant_only_loss": Refusal((False,), f"{_IN_LABELS}; TRL refuses it for rows that are tokenized"),
    "chat_template_path": Refusal((None,), _IN_TOKENIZER),
    "eos_token": Refusal((None,), _IN_TOKENIZER),
    "pad_token": Refusal((None,), _IN_TOKENIZER),
    "remove_unused_columns": Refusal((False,), "it drops the column `sources`, which the loss per source needs"),
    "train_sampling_strategy": Refusal(
        ("random", "sequential"), "packed rows are of one length; it reads every row at start to sort them by length"
    ),
    "length_column_name": Refusal(("length",), "packed rows are of one length: nothing is grouped by it"),
    "use_cache": Refusal((False,), "a forward pass with a cache ignores where packed documents end"),
    # Wrong updates
    "average_tokens_across_devices": Refusal(
        (True,), "each process would divide by its own token count: uneven rows then get a wrong update (67 % measured)"
    ),
    "auto_find_batch_size": Refusal(
        (False,), "it changes the batch in the middle of a run, and the schedule with it; ZeRO-3 cannot do it at all"
    ),
    "lora_task_type": Refusal(("CAUSAL_LM",), "another task type adds another head; here generation is trained"),
    # Exact resume
    "enable_jit_checkpoint": Refusal(
        (False,),
        "each process saves when its own timer ends; under DeepSpeed a resume then trains one batch twice",
    ),
    "ignore_data_skip": Refusal((False,), "a resumed run would train the first rows again and never see others"),
    "save_only_model": Refusal((False,), "such a checkpoint has no optimizer state and cannot be resumed"),
    "save_on_each_node": Refusal(
        (False,), "a checkpoint is complete when one shared folder holds the files of all processes"
    ),
    "dataloader_drop_last": Refusal(
        (False,), "the last step of an epoch is filled with rows of no trained token: there is nothing to drop"
    ),
    "dataloader_in_order": Refusal((True,), "batches would come as workers finish them, in another order each time"),
    "resume_from_checkpoint": Refusal((None,), "write resume: auto, never or PATH; it skips incomplete ones"),
    # What the launch owns
    "deepspeed": Refusal((None,), _LAUNCH),
    "fsdp": Refusal((None,), _LAUNCH),
    "fsdp_config": Refusal((None,), _LAUNCH),
    "parallelism_config": Refusal((None,), _LAUNCH),
    "local_rank": Refusal((-1,), "the launcher tells each process its rank by the environment"),
    # Secrets, and flags that do nothing
    "hub_token": Refusal((None,), "a token in a file or on a command line leaks: set HF_TOKEN, or run `hf auth login`"),
    "do_train": Refusal((False,), _UNUSED),
    "do_eval": Refusal((False,), f"{_UNUSED}; set eval_strategy"),
    "do_predict": Refusal((False,), _UNUSED),
}

# Names that older versions of the libraries or other trainers use, and what to write now.
RENAMED: dict[str, str] = {
    "max_seq_length": "the length of rows is seq_len in the data recipe (configs/data)",
    "seq_len": "the length of rows is seq_len in the data recipe (configs/data)",
    "torch_dtype": "write dtype",
    "evaluation_strategy": "write eval_strategy",
    "warmup_ratio": "write warmup_steps with a number below 1, such as warmup_steps: 0.03",
    "group_by_length": "packed rows are of one length: leave it out",
    "no_cuda": "write use_cpu",
    "overwrite_output_dir": "choose another output_dir: a run goes on from the newest complete checkpoint in its own",
    "logging_dir": "set TENSORBOARD_LOGGING_DIR in the environment",
    "dataset_name": "write data, with the folder that packhaul prepare made",
    "model_name": "write model_name_or_path",
}

# Keys of model_init_kwargs that have their own option, which would silently win.
_MODEL_INIT_OWNED = {
    "revision": "model_revision",
    "trust_remote_code": "trust_remote_code",
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "quantization_config": "load_in_4bit or load_in_8bit",
}
# Keys of model_init_kwargs by which transformers shards a model as it loads it, experts among it.
_SHARDED_AT_LOAD = ("distributed_config", "tp_plan", "tp_size", "device_mesh")
_QUANTISATION = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
_NEW_TF32_TORCH = (2, 13)  # the first whose inductor was seen to read the new settings when it autotunes
_ACCELERATOR_SAFE = {
    "split_batches": (False, "per_device_train_batch_size would mean the batch of all processes together"),
    "dispatch_batches": (False, "a batch of packed rows is one long sequence and cannot be cut for several processes"),
    "use_seedable_sampler": (
        True,
        "the order of rows would depend on the global random state, which differs after a resume",
    ),
}


def refused_values(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, why) for each option with a value that is refused on its own."""
    for name, value in values.items():
        refusal = REFUSALS.get(name)
        if refusal and not any(value == safe and type(value) is type(safe) for safe in refusal.safe):
            keep = " or ".join(repr(safe) for safe in refusal.safe)
            yield name, f"{value!r} is refused: {refusal.reason} (leave it out, or keep {keep})"


def refused_combinations(sft: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, why) for each option that contradicts another one, or does nothing without it."""
    yield from _nested(sft)
    yield from _precision(sft)
    yield from _ignored(sft)
    yield from _adapters(model)
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if old in sft and new in sft and sft[old] != sft[new]:
            yield (
                old,
                f"{sft[old]!r} contradicts {new}: {sft[new]!r}, the new name of this option: keep one of them",
            )


def _ignored(sft: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the libraries silently ignore, or fail at only when training begins."""
    if sft.get("activation_offloading") and sft.get("use_cpu"):
        yield "activation_offloading", "True together with use_cpu: activations are in the CPU's memory already"
    if sft.get("label_smoothing_factor") and sft.get("loss_type") == "dft":
        yield (
            "label_smoothing_factor",
            "does nothing with loss_type: dft, which has a loss of its own: choose one of them",
        )
    yield from _compilation(sft)
    optim = str(sft.get("optim", ""))
    if optim.startswith("schedule_free"):
        reason = "its weights must be swapped around each evaluation and save, which nothing does here"
        yield "optim", f"{optim!r} is refused: {reason}: choose another"
    if optim in ("lomo", "adalomo") or optim.endswith("_layerwise"):
        reason = (
            "it updates weights in the backward pass of each micro-batch, so that accumulation and clipping do nothing"
        )
        yield "optim", f"{optim!r} is refused: {reason}: choose another"


def _compilation(sft: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What fails only when the first batch is there, or after minutes of compiling."""
    mode, version = str(sft.get("torch_compile_mode")), installed_version("torch")
    # transformers turns TF32 on in the new way, for compiling, unless tf32 or fp16 says otherwise.
    sets_tf32 = not sft.get("use_cpu") and (sft.get("tf32") or (sft.get("tf32") is None and not sft.get("fp16")))
    if mode.startswith("max-autotune") and version < _NEW_TF32_TORCH and sets_tf32:
        reason = (
            f"asks for TF32 in the old way, which torch {version[0]}.{version[1]} refuses after the new one was used"
        )
        yield "torch_compile_mode", f"{mode!r} {reason}: leave it out, write tf32: false, or use torch >= 2.13"


def _nested(sft: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in sorted(set(sft.get("model_init_kwargs") or {}) & set(_MODEL_INIT_OWNED)):
        yield "model_init_kwargs", f"{key!r} would be overwritten: give {_MODEL_INIT_OWNED[key]} as its own option"
    for key in sorted(set(sft.get("model_init_kwargs") or {}) & set(_SHARDED_AT_LOAD)):
        reason = "transformers cannot resume a model that it shards as it loads it"
        remedy = "leave it out; for expert parallelism use configs/accelerate/zero2_ep.yaml or zero3_ep.yaml"
        yield "model_init_kwargs", f"{key!r} is refused: {reason}: {remedy}"
    accelerator = sft.get("accelerator_config") or {}
    if isinstance(accelerator, str):
        yield "accelerator_config", f"expected a mapping, found a file name ({accelerator!r}): write its keys here"
        return
    for key, (safe, reason) in _ACCELERATOR_SAFE.items():
        if accelerator.get(key) not in (None, safe):
            yield "accelerator_config", f"{key}: {accelerator[key]!r} is refused: {reason}"
    if (sft.get("liger_kernel_config") or {}).get("fused_linear_cross_entropy"):
        reason = "it replaces the forward that TRL patches to compute the loss without full logits"
        yield "liger_kernel_config", f"fused_linear_cross_entropy: True is refused: {reason}"


def _precision(sft: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if sft.get("bf16") and sft.get("fp16"):
        yield "fp16", "True together with bf16: True: choose one of them"
    for name in ("bf16", "fp16"):
        trained_in = bool(sft.get("fp16")) if name == "fp16" else sft.get("bf16", not sft.get("fp16")) is not False
        if sft.get(f"{name}_full_eval") and not trained_in:
            yield f"{name}_full_eval", f"True while {name} is off: under DeepSpeed it turns training to {name} as well"


def _adapters(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings given without the switch that turns them on; an explicit `use_peft: false` may stand next to them."""
    quantised = model.get("load_in_4bit") or model.get("load_in_8bit")
    if model.get("load_in_4bit") and model.get("load_in_8bit"):
        yield "load_in_8bit", "True together with load_in_4bit: True: choose one of them"
    for name in model:
        if (name in ("use_rslora", "use_dora") or name.startswith("lora_")) and "use_peft" not in model:
            yield name, "does nothing without use_peft: true, and every weight would be trained: add use_peft"
        if name in _QUANTISATION and "load_in_4bit" not in model:
            yield name, "does nothing without load_in_4bit: true"
    if quantised and not model.get("use_peft"):
        yield "load_in_4bit", "quantised weights cannot be trained: add use_peft: true (QLoRA), or leave it out"
    targets = model.get("lora_target_modules") or []
    if any(str(target).split(".")[-1] == "lm_head" for target in targets):
        reason = "TRL computes the loss from lm_head.weight directly, so an adapter there would never be trained"
        yield "lora_target_modules", f"'lm_head' is refused: {reason}"


def unknown_rules() -> list[str]:
    """Rules about options that the installed libraries no longer have (a test keeps this empty)."""
    return sorted(set(REFUSALS) - set(sft_options()) - set(model_options()))
