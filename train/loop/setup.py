"""The trainer of a run, made of its parts: rows, model, callbacks and the sampler of answers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, EarlyStoppingCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import get_peft_config, get_quantization_config

from data_prep.shards import TOKENIZER_DIR, Manifest
from train.checkpoint.resume import identity
from train.config.run_config import RunConfig, build_model_config
from train.config.steps import rows_per_step_of, steps_per_epoch
from train.loop import console, tracker_ends
from train.loop.data import load_split, number_rows, pad_to_multiple
from train.loop.report_page import ReportPage
from train.loop.sample_answers import Sampler, choose_prompts, own_questions
from train.loop.start_notes import StartNotes
from train.loop.trainer import PackedSFTTrainer
from train.loop.wandb_run import use_safe_wandb
from train.model import (
    compiling,
    documentwise,
    expert_parallel,
    fsdp,
    head_loss,
    isolation,
    mask_positions,
    neftune,
    saved_settings,
    sequence_parallel,
)
from train.model.loading import check_vocabulary, keep_quantised_layout, prepare_model_arguments
from train.run.preemption import Signals
from train.run.preemption_callback import PreemptionCallback

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, TrainerCallback
    from trl import ModelConfig, SFTConfig

log = logging.getLogger(__name__)


def make_trainer(
    config: RunConfig,
    args: SFTConfig,
    manifest: Manifest,
    record: dict[str, Any],
    signals: Signals,
) -> PackedSFTTrainer:
    """The trainer with its model, rows and all callbacks. Every process must call it.

    Args:
        args: of `build_sft_config`, with the order of the rows (`set_row_order`); model arguments are set in it.
        record: run.json.
        signals: those that this process has got.

    Raises:
        ValueError: the model cannot be trained on these shards, or the processes are not what was asked for.
    """
    tokenizer = AutoTokenizer.from_pretrained(Path(config.own.data) / TOKENIZER_DIR)
    row_ranks = config.own.sequence_parallel
    rows_a_step = rows_per_step_of(args, row_ranks)
    eval_rows_a_batch = args.world_size // row_ranks * args.per_device_eval_batch_size
    train_rows, eval_rows = _load_rows(config, args, manifest)
    if manifest["recipe"]["order"] == "curriculum":
        log.info("curriculum: rows are trained in the order of the shards")
    model_config = _prepare_model(config, args, manifest)
    fsdp.keep_gradients_sharded(args)
    stop = PreemptionCallback(signals)
    trainer = PackedSFTTrainer(
        model=model_config.model_name_or_path,
        args=args,
        train_dataset=_fill_up(train_rows, rows_a_step, manifest),
        eval_dataset=eval_rows and _fill_up(eval_rows, eval_rows_a_batch, manifest),
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
        callbacks=[*_early_stopping(config), stop],
        source_names=[source["name"] for source in manifest["sources"]],
        checkpoint_extra={k: record[k] for k in ("manifest_sha256", "base_model", "wandb_run_id", "git_commit")}
        | {"sequence_parallel": row_ranks, **identity(config, args)},
        shards=[(shard["file"], shard["rows"]) for shard in manifest["splits"]["train"]["shards"]],
        on_bad_step=config.own.on_bad_step,
        spike_sigma=config.own.spike_sigma,
        baseline=record["baseline"],
        sampler=eval_rows and _make_sampler(config, args, manifest, eval_rows, tokenizer),
        save_in_background=config.own.save_in_background,
        stop=stop,
        sequence_parallel=row_ranks,
    )
    trainer.compute_as(copies=config.own.bf16_copies, keep_logits_gib=config.own.keep_logits_gib)
    fsdp.keep_precision(trainer.accelerator)
    fsdp.take_states_unscaled(trainer)
    expert_parallel.install(trainer)
    keep_quantised_layout(trainer.model)
    _install_documentwise(trainer.model, row_ranks)
    mask_positions.install(trainer.model)
    head_loss.check(trainer.model)
    saved_settings.make_savable(trainer.model)
    if "wandb" in (args.report_to or ()):
        use_safe_wandb(trainer, record)
    tracker_ends.put_off(trainer)
    _check_distributed_type(trainer.accelerator.distributed_type.value, config)
    compiling.install(trainer, manifest["seq_len"])
    padded = args.pad_to_multiple_of or row_ranks > 1
    check_vocabulary(trainer.model, manifest, tokenizer.pad_token_id if padded else None)
    trainer.add_callback(isolation.make_callback(trainer))
    trainer.add_callback(neftune.make_callback(trainer))
    trainer.add_callback(sequence_parallel.make_callback(trainer))
    console.install(trainer, trainer.source_names)
    trainer.add_callback(StartNotes())
    trainer.add_callback(ReportPage())
    _log_setup(trainer, manifest, rows_a_step)
    return trainer


def _install_documentwise(model: Any, row_ranks: int) -> None:
    """Before anything wraps the model.

    Raises:
        ValueError: rows are cut into parts, which such layers cannot have.
    """
    if found := documentwise.install(model):
        layers = ", ".join(f"{number} {name}" for name, number in found.items())
        if row_ranks > 1:
            raise ValueError(f"sequence_parallel: {layers} carry a state from token to token: leave it out")
        if is_deepspeed_zero3_enabled():
            documentwise.fix_calls(model)


def _load_rows(config: RunConfig, args: SFTConfig, manifest: Manifest) -> tuple[Dataset, Dataset | None]:
    """The rows of both splits; None where nothing is evaluated."""
    train_rows = load_split(config.own.data, manifest, "train")
    assert train_rows is not None  # preflight refuses shards without rows to train on
    if args.eval_strategy == "no":
        return train_rows, None
    return train_rows, load_split(config.own.data, manifest, "eval")


def _fill_up(rows: Dataset, multiple: int, manifest: Manifest) -> Dataset:
    """The rows with their numbers, and with filler rows up to a multiple."""
    return number_rows(pad_to_multiple(rows, multiple, manifest["end_token_ids"][0]))


def _prepare_model(config: RunConfig, args: SFTConfig, manifest: Manifest) -> ModelConfig:
    """Which model is loaded, and, in `args`, how; says which attention it gets."""
    model_config = build_model_config(config)
    asked_dtype = config.model.get("dtype")
    attention = prepare_model_arguments(
        model_config,
        args,
        asked_dtype,
        manifest["seq_len"],
        allow_pickle=config.own.allow_pickle,
        row_ranks=config.own.sequence_parallel,
    )
    log.info(f"attention: {attention}")
    return model_config


def _early_stopping(config: RunConfig) -> list[TrainerCallback]:
    if config.own.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(config.own.early_stopping_patience, config.own.early_stopping_threshold)]


def _make_sampler(
    config: RunConfig, args: SFTConfig, manifest: Manifest, eval_rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Sampler | None:
    """None if no held-out prompt fits."""
    new_tokens = config.own.sample_max_new_tokens
    names = [source["name"] for source in manifest["sources"]]
    most_tokens = manifest["seq_len"] - new_tokens
    prompts = choose_prompts(eval_rows, names, config.own.sample_prompts, most_tokens)
    if config.own.sample_questions:
        prompts += own_questions(config.own.sample_questions, tokenizer, most_tokens)
    if not prompts:
        return None
    return Sampler(
        prompts,
        tokenizer,
        Path(config.sft["output_dir"]),
        end_token_ids=manifest["end_token_ids"],
        max_new_tokens=new_tokens,
    )


def _check_distributed_type(found: str, config: RunConfig) -> None:
    """Refuse plain data parallelism where weights were to be sharded: accelerate silently falls back to it."""
    launched = [
        kind for kind in ("DEEPSPEED", "FSDP") if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"
    ]
    asked = config.own.expected_distributed_type or next(iter(launched), found)
    if found != asked:
        raise ValueError(
            f"expected the distributed type {asked}, found {found}: do not set ACCELERATE_USE_CPU (it turns DeepSpeed "
            "into plain data parallelism); use `use_cpu: true` in both the accelerate YAML and the run "
            "config; FSDP needs GPUs"
        )


def _log_setup(trainer: PackedSFTTrainer, manifest: Manifest, rows_a_step: int) -> None:
    """What is compiled, and how much a step and an epoch are."""
    if compiled := compiling.describe(trainer.accelerator.state.dynamo_plugin, trainer.model):
        log.info(compiled)
    rows = manifest["splits"]["train"]["rows"]
    log.info(
        f"{trainer.args.world_size} process(es), {trainer.accelerator.distributed_type.value}: {rows_a_step} packed "
        f"rows a step (up to {rows_a_step * manifest['seq_len']:,} tokens), {rows:,} rows, "
        f"{steps_per_epoch(rows, rows_a_step):,} steps an epoch"
    )
    if trainer.row_group is not None:
        log.info(f"sequence parallelism: {trainer.row_group.size()} ranks hold each row in parts")
