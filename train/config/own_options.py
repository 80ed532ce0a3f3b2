"""Our own options, other defaults than the libraries', and all options that a run may give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from train.config.library_options import Option, model_options, sft_options


def _own(help_text: str, default: Any = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What the libraries have no option for."""

    data: str = _own("Shard directory made by packhaul prepare. Required.", "")
    expected_world_size: int | None = _own("Refuse to train with another number of processes than this.")
    expected_distributed_type: str | None = _own(
        "Refuse to train with another distributed type than this, as accelerate names it.",
        choices=("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED", "FSDP"),
    )
    sequence_parallel: int = _own(
        "Number of consecutive ranks that hold a packed row in parts and share its attention heads: for rows too long "
        "for one GPU. It divides the world size. 1: each rank has rows of its own.",
        1,
    )
    resume: str = _own(
        "auto: resume from the newest complete checkpoint in output_dir, or start if there is none. never: start, and "
        "refuse an output_dir that holds checkpoints. Or the folder of the checkpoint to resume from.",
        "auto",
    )
    allow_pickle: bool = _own(
        "Also load a model whose weights are pickled files (*.bin): loading them can run any code that is in them.",
        False,
    )
    verify_shards: bool = _own(
        "Read all shards at the start and compare them with their hashes in the manifest; the processes share the "
        "reading.",
        True,
    )
    verify_checkpoint: bool = _own(
        "Read the checkpoint to resume from and compare it with the digests made when it was written; the processes "
        "share the reading. A damaged one is quarantined (renamed), and an older one used.",
        True,
    )
    reinitialize_optimizer: bool = _own(
        "On another number of processes or another ZeRO stage, resume with the weights of the checkpoint and fresh "
        "optimizer states: for optimizers whose states cannot be rearranged, such as the 8-bit ones.",
        False,
    )
    bf16_copies: bool = _own(
        "Compute with bf16 copies of the fp32 weights, made once a step, instead of casting them in each forward pass: "
        "faster, and what flows between layers is bf16, as under DeepSpeed. For bf16: true with one process "
        "without DeepSpeed. Gradients are added up, and weights changed and saved, in fp32.",
        False,
    )
    keep_logits_gib: float = _own(
        "The backward pass takes the logits that the forward pass computed, where they are no more than this many GiB "
        "(trained tokens x vocabulary x 2 bytes in bf16), instead of computing them again. 0: none are kept.",
        0.0,
    )
    save_in_background: bool = _own(
        "Training goes on as soon as a checkpoint's states are copied in host memory, if they fit there; a thread then "
        "writes them. The memory is kept for the next save. False: training waits until the checkpoint is complete.",
        True,
    )
    on_bad_step: str = _own(
        "What happens to a step whose loss or gradient norm is not finite, or whose loss is a spike (spike_sigma), "
        "before it changes the weights. Its documents are written to bad_steps/ in output_dir. ignore: no step is "
        "checked.",
        "stop",
        choices=("stop", "skip", "ignore"),
    )
    spike_sigma: float | None = _own(
        "A loss is a spike if it is more than this number of standard deviations above the mean of the last 100 steps; "
        "8 is a good start. Not given: no loss is a spike."
    )
    sample_prompts: int = _own(
        "Held-out prompts per source that are answered at each evaluation, into samples.jsonl and W&B. 0: none.", 2
    )
    sample_questions: str | None = _own(
        "File of questions of your own that are answered as well: one on each line, or .jsonl rows of prompt or "
        "messages, as packhaul generate --prompts reads them. The same ones before and after show what is forgotten."
    )
    sample_max_new_tokens: int = _own("Longest such answer, in tokens.", 64)
    early_stopping_patience: int | None = _own(
        "Stop after this number of evaluations in a row without a better metric_for_best_model. Not given: never."
    )
    early_stopping_threshold: float = _own("The metric must improve by more than this to count as better.", 0.0)
    hang_seconds: Mapping[str, float] | None = _own(
        "Seconds without progress after which a rank hangs, by phase: start, step, save, evaluation. The rank that "
        "all wait for is named, and all end. Those not given: 1800, 600, 1800, 600; never more than ddp_timeout lets."
    )


HANG_PHASES = ("start", "step", "save", "evaluation")  # what hang_seconds may name
# What packed rows need, whatever the libraries' defaults; `train.config.refused_options` refuses any other value.
PACKED_ROWS: dict[str, Any] = {
    "packing": False,
    "padding_free": True,
    "max_length": None,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "remove_unused_columns": False,
    "average_tokens_across_devices": True,
}
# Our defaults where the libraries' differ; a run may set them. With logging_nan_inf_filter, the mean of earlier losses
# would replace a NaN, in the logs and for everything that watches them. Later evaluations are compared with the one
# before the first step.
OWN_DEFAULTS: dict[str, Any] = {"logging_nan_inf_filter": False, "eval_on_start": True}
REQUIRED = {
    "data": "the shard directory made by packhaul prepare",
    "output_dir": "the run directory, where checkpoints and the final model go",
    "model_name_or_path": "the folder or hub id of the model to train",
}


_KINDS = {"None": "none", "Mapping[str, float]": "dict"}  # by annotation


def own_options() -> dict[str, Option]:
    """Our own options, in the form of the libraries'."""
    options = {}
    for f in fields(OwnOptions):
        kinds = frozenset(_KINDS.get(kind, kind) for kind in str(f.type).split(" | "))
        options[f.name] = Option(name=f.name, declared_in="OwnOptions", kinds=kinds, default=f.default, **f.metadata)
    return options


def known_options() -> dict[str, Option]:
    """Every option that a run may give, by name."""
    return {**own_options(), **model_options(), **sft_options()}
