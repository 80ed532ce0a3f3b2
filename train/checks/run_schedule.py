"""Steps, evaluations and checkpoints of a run, derived from manifest and run config as the trainer will."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.shards import SplitCounts
from train.config import steps
from train.config.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Derived numbers of a run."""

    processes: int
    rows_per_step: int  # packed rows of one optimizer step, over all processes
    tokens_per_step: int  # about: rows_per_step times the mean tokens of a row
    trained_tokens_per_step: int  # about
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    num_evaluations: int
    num_checkpoints: int  # written; save_total_limit says how many stay


def derive(config: RunConfig, train: SplitCounts, processes: int) -> Schedule:
    """The schedule.

    Args:
        train: the manifest's entry of the train split, with at least one row.
        processes: world size.
    """
    micro_batch, accumulation = config.value("per_device_train_batch_size"), config.value("gradient_accumulation_steps")
    ranks = config.own.sequence_parallel
    rows_per_step = max(steps.rows_per_step(processes, micro_batch, accumulation, ranks), 1)  # 0 is reported
    steps_per_epoch = steps.steps_per_epoch(train["rows"], rows_per_step)
    total = steps.steps_in_all(steps_per_epoch, config.value("max_steps"), config.value("num_train_epochs"))
    epochs = math.ceil(total / steps_per_epoch)
    return Schedule(
        processes=processes,
        rows_per_step=rows_per_step,
        tokens_per_step=round(rows_per_step * train["tokens"] / train["rows"]),
        trained_tokens_per_step=round(rows_per_step * train["trained_tokens"] / train["rows"]),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=_every(config.value("warmup_steps"), total),
        num_evaluations=_times(config, "eval", total, epochs) + config.eval_on_start,
        num_checkpoints=_times(config, "save", total, epochs),
    )


def _every(steps: float, total: int) -> int:
    """A number of steps, where a number below 1 is a share of all steps."""
    return int(steps) if steps >= 1 else math.ceil(total * steps)


def _times(config: RunConfig, what: str, total: int, epochs: int) -> int:
    """How often the trainer evaluates or saves: after every N steps, and once more at the end."""
    strategy = config.value(f"{what}_strategy")
    if strategy == "steps":
        every = _every(eval_steps(config) if what == "eval" else config.value("save_steps"), total)
        return math.ceil(total / max(every, 1))
    return {"no": 0, "epoch": epochs}.get(strategy, 0)


def eval_steps(config: RunConfig) -> float:
    """Steps between evaluations; the trainer takes logging_steps where none are given."""
    return config.value("eval_steps") or config.value("logging_steps")


def check_schedule(config: RunConfig, eval_rows: int | None, sources: Sequence[str] = ()) -> Iterator[str]:
    """Contradictions between evaluating, saving and the best checkpoint.

    Args:
        eval_rows: rows of the eval split, if the manifest could be read.
        sources: names of those with documents in the eval split.
    """
    if sources and eval_rows:
        yield from _check_metric(config, sources)
    evaluates, saves = config.value("eval_strategy"), config.value("save_strategy")
    if evaluates != "no" and eval_rows == 0:
        yield (
            f"eval_strategy: {evaluates}, but {config.own.data} has no eval split: set eval_fraction in its recipe and "
            "prepare again, or write eval_strategy: no"
        )
    if evaluates == "no" and config.value("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy"):
        yield f"lr_scheduler_type: {config.value('lr_scheduler_type')} needs evaluations: set eval_strategy"
    if config.value("load_best_model_at_end"):
        yield from _check_best(config, evaluates, saves)
    elif saves == "best" and evaluates == "no":
        yield "save_strategy: best needs evaluations: set eval_strategy"


def _check_best(config: RunConfig, evaluates: str, saves: str) -> Iterator[str]:
    name = "load_best_model_at_end"
    if evaluates == "no":
        yield f"{name}: true needs evaluations to know the best by: set eval_strategy"
    elif saves not in (evaluates, "best"):
        yield f"{name}: true expects save_strategy: {evaluates}, as eval_strategy, found {saves}: write the same"
    elif saves == evaluates == "steps":
        save, between = config.value("save_steps"), eval_steps(config)
        if (save < 1) != (between < 1) or round(save * 1_000_000) % max(round(between * 1_000_000), 1):
            yield (
                f"{name}: true expects save_steps to be a multiple of eval_steps, found {save} and {between}: every "
                "checkpoint needs an evaluation of its own"
            )


def _check_metric(config: RunConfig, sources: Sequence[str]) -> Iterator[str]:
    """A metric that is not measured would end the trainer with a KeyError after the first evaluation."""
    asked = config.value("metric_for_best_model")
    if asked is None or config.value("eval_strategy") == "no":
        return
    of = ["", *(f"{name}_" for name in sources)]
    known = [f"eval_{source}{kind}" for source in of for kind in ("loss", "token_accuracy")]
    known += [f"eval_{source}loss_change" for source in of if config.eval_on_start]
    name = asked if asked.startswith("eval_") else f"eval_{asked}"
    if name not in known:
        yield f"metric_for_best_model: expected one of {', '.join(known)}, found {asked}: name one that is measured"


def schedule_notes(config: RunConfig, schedule: Schedule, train: SplitCounts) -> Iterator[str]:
    """What is allowed but seldom meant."""
    if schedule.warmup_steps >= schedule.total_steps:
        yield f"warm-up takes all {schedule.total_steps} steps: the learning rate never stays at its peak"
    if train["rows"] < schedule.rows_per_step:
        yield f"a step takes {schedule.rows_per_step} rows, the train split has {train['rows']}: each step is an epoch"
    if schedule.num_checkpoints == 0:
        yield "no checkpoint is written before the end: an interrupted run starts again from step 0"


def schedule_lines(config: RunConfig, schedule: Schedule) -> Iterator[str]:
    """The derived numbers for a person."""
    micro, accumulation = config.value("per_device_train_batch_size"), config.value("gradient_accumulation_steps")
    yield (
        f"batch        {schedule.rows_per_step} rows a step = {micro} x {accumulation} accumulated x "
        f"{_who(config, schedule)}: about {schedule.tokens_per_step:,} tokens, "
        f"{schedule.trained_tokens_per_step:,} of them trained"
    )
    yield (
        f"steps        {schedule.total_steps:,} in all, {schedule.steps_per_epoch:,} an epoch, "
        f"{schedule.warmup_steps:,} of warm-up"
    )
    kept = config.value("save_total_limit") or "all"
    yield f"checkpoints  {schedule.num_checkpoints:,} written, {kept} kept; {schedule.num_evaluations:,} evaluations"


def _who(config: RunConfig, schedule: Schedule) -> str:
    """What takes rows of its own."""
    ranks = config.own.sequence_parallel
    if ranks == 1:
        return f"{schedule.processes} processes"
    return f"{schedule.processes // ranks} groups of {ranks} processes"


def compiling_notes(config: RunConfig, seq_len: int) -> Iterator[str]:
    """Notes on padding rows to one length, which matters for compiling.

    Args:
        seq_len: most tokens of a packed row.
    """
    compiles = any(config.value(f"torch_compile{end}") for end in ("", "_backend", "_mode"))
    multiple, tokens = config.value("pad_to_multiple_of"), seq_len * config.value("per_device_train_batch_size")
    if not isinstance(multiple, int):
        if compiles:
            yield (
                f"torch_compile: rows are filled up to {seq_len:,} tokens, or layers would be compiled again for each "
                "length; what fills them is neither trained nor counted"
            )
    elif multiple > tokens:
        yield f"pad_to_multiple_of {multiple:,} fills up each micro-batch, of at most {tokens:,} tokens, to that size"
