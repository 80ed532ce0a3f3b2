"""Entry: completion-only supervised fine-tuning on packed shards.

    packhaul train --launch NAME --config configs/train/X.yaml [--option value]
    accelerate launch --config_file configs/accelerate/NAME.yaml -m train.sft ...    # the same, by the module

Run the same command again after a crash or a preemption: it goes on from the newest complete checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checks.unused_packages import end_start, leave_out_unused
from train.checks.world import check_one_gpu, check_world_size
from train.config.run_config import RunConfig, load_run_config
from train.loop import tracker_ends, wandb_run
from train.run import compile_locks, ending, last_words, preemption, quiet, watchdog
from train.run.log import finish as finish_lines
from train.run.log import set_up
from train.run.preemption import Signals

if TYPE_CHECKING:
    from trl import SFTConfig

    from data_prep.shards import Manifest
    from train.checkpoint.folders import Checkpoint

log = logging.getLogger("train.sft")  # the module is called __main__ where it is started


def main(argv: list[str] | None = None, *, own_process: bool = False, held: ExitStack | None = None) -> int:
    """Train to the end, or to a preemption (both 0); 2 when something has to be changed first, 130 after Ctrl-C.

    Args:
        own_process: nothing else runs in this process, so packages that the run does not use are not imported.
        held: keeps the lock on the run directory after the end, until the caller closes it.
    """
    set_up()
    signals = Signals()
    signals.install()
    own_hold, held = held is None, held or ExitStack()
    code = 1
    try:
        _prepare_process()
        code = _run(sys.argv[1:] if argv is None else argv, own_process, signals, held)
    except SystemExit as end:  # --help
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except Exception as error:
        last_words.write_down_traceback(error, code)
        if not own_process:
            raise
        last_words.show_traceback(error)
    finally:
        _end(code, own_process, signals.first() is not None, held)
        if own_hold:  # nobody else lets go of the run directory
            held.close()
    return code


def _end(code: int, own_process: bool, hurried: bool, held: ExitStack) -> None:
    """Let trackers take what they have not taken, in a bounded time.

    Args:
        hurried: a signal has come, and a grace period is running.
    """
    watchdog.end_watch()
    if own_process:
        seconds = ending.HURRIED if hurried else max(ending.LIMIT, wandb_run.longest_end() + ending.SPARE)
        ending.begin(code, seconds, held)
    finish_lines()
    wandb_run.end(code, hurried)
    tracker_ends.end()


def _run(argv: list[str], own_process: bool, signals: Signals, held: ExitStack) -> int:
    try:
        config = load_run_config(argv)
        run_dir, timeout = Path(config.sft["output_dir"]), float(config.value("ddp_timeout"))
        watchdog.begin(config.own.hang_seconds or {}, timeout, run_dir)
        _preflight(config)
        if own_process:
            leave_out_unused(config)
        if _train(config, signals, held):
            return preemption.INTERRUPTED
    except ValueError as error:
        return last_words.refuse(str(error), 2)
    except RuntimeError as error:
        if not (reason := watchdog.explain(error)):
            raise
        return last_words.refuse(reason, 1, consequence=True)
    return 0


def _prepare_process() -> None:
    """Let DeepSpeed find the environment's own ninja where the environment is not activated, and silence torch's
    warnings about names that DeepSpeed still uses."""
    import warnings

    quiet.set_up()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        compile_locks.remove_stale()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..* is deprecated", category=FutureWarning)


def _preflight(config: RunConfig) -> None:
    from train.preflight import check

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    problems = check(config, accelerate_config=None, world_size=world_size)
    if problems:
        raise ValueError(f"{len(problems)} problem(s) found before the start:\n- " + "\n- ".join(problems))


def _train(config: RunConfig, signals: Signals, held: ExitStack) -> bool:
    """Whether it was stopped by Ctrl-C."""
    quiet.import_integrations()
    from train.checkpoint.final_model import save_final_model
    from train.checkpoint.finished import deciding_options
    from train.checkpoint.resume import find_resume, note_start
    from train.checkpoint.world_size import keep_global_batch, resumable
    from train.config.run_config import build_sft_config
    from train.config.steps import rows_per_step_of, steps_in_all, steps_per_epoch
    from train.loop.data import load_manifest, set_row_order, verify_shards
    from train.model.lora_targets import check_targets
    from train.run import run_record, starts

    run_dir = Path(config.sft["output_dir"])
    config, note = keep_global_batch(config, run_dir, int(os.environ.get("WORLD_SIZE", "1")))
    reach = None
    with suppress(OSError):  # whoever loads the model says what it lacks
        reach = check_targets(config)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        quiet.silence_deepspeed()
        compile_locks.announce_builds()
    watchdog.part("joining the world")
    args = build_sft_config(config)  # starts the process group
    check_world_size(args.world_size, config)
    check_one_gpu(args.n_gpu)
    manifest = load_manifest(config.own.data)
    set_row_order(args, manifest)
    rows_a_step = rows_per_step_of(args, config.own.sequence_parallel)
    an_epoch = steps_per_epoch(manifest["splits"]["train"]["rows"], rows_a_step)
    total_steps = steps_in_all(an_epoch, args.max_steps, args.num_train_epochs)
    record, done = _start_record(run_dir, config, args, total_steps, held)
    run_record.use_wandb_id(record, run_dir)
    for line in (*([note] if note else ()), *([f"LoRA {reach}", *reach.notes()] if reach else ())):
        log.info(line)
    if done is not None:
        log.info(f"finished before, after {done} steps: {run_dir}. To go on, give more num_train_epochs or max_steps")
        return False
    if config.own.verify_shards:
        watchdog.part("verifying the shards")
        verify_shards(config.own.data, manifest, args)

    # Only here: a run that is finished needs no trainer, which takes seconds to import.
    from train.loop.evaluation import report_better_base
    from train.loop.setup import make_trainer
    from train.memory import after_run

    memory_before = after_run.memory_before(args.device)
    watchdog.part("loading the model")
    trainer = make_trainer(config, args, manifest, record, signals)
    watchdog.part("preparing to train")
    resumed = find_resume(config, run_dir, args)
    if record["base_model"] is None:  # else it was compared before run.json was written
        _check_downloaded(config, manifest)
        _learn_base(trainer, resumed, run_dir, config)
    note_start(resumed)
    if resumed:
        log.info(f"resuming from {resumed.path} (step {resumed.step})")
        trainer.checkpointer.resume(resumed)
        args.eval_on_start = False  # the base model was evaluated at the first start
    trainer.checkpointer.grace_period.check_at_start(resumed)
    end_start()
    resuming = resumable(resumed, trainer, config) if resumed else nullcontext()
    with resuming as folder:
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
    steps = trainer.state.global_step
    if trainer.checkpointer.preempted:
        _check_saved(trainer, run_dir)
        trainer.accelerator.wait_for_everyone()  # nobody leaves before the mark: a launcher ends the others
        how = starts.INTERRUPTED if trainer.checkpointer.interrupted else starts.SAVED
        starts.end(how, signals.first() or "signal on another process", step=steps)
        stopped = "stopped by Ctrl-C" if trainer.checkpointer.interrupted else "preempted"
        log.info(f"{stopped} after step {steps}: the checkpoint is complete, run the same command again to go on")
        return bool(trainer.checkpointer.interrupted)
    watchdog.enter("save", steps, "final model")
    extra = {**trainer.checkpointer.extra, "options": deciding_options(config)}
    save_final_model(trainer, run_dir, extra, signals)
    starts.end(starts.COMPLETE, step=steps)
    report_better_base(trainer)
    after_run.keep(trainer, config, manifest, memory_before)
    log.info(f"done after {steps} steps: {run_dir}. Next: packhaul export --checkpoint {run_dir}")
    return False


def _check_saved(trainer: Any, run_dir: Path) -> None:
    """Refuse to call a run preempted, and so ready to be requeued, whose last checkpoint could not be saved."""
    step = trainer.state.global_step
    if trainer.checkpointer.publisher.published_step != step:
        raise ValueError(
            f"stopped by a signal after step {step}, but checkpoint-{step} could not be saved (see above): make space "
            f"in {run_dir} and run the same command again; it goes on from the newest complete checkpoint there"
        )


def _start_record(
    run_dir: Path,
    config: RunConfig,
    args: SFTConfig,
    total_steps: int,
    held: ExitStack,
) -> tuple[dict[str, Any], int | None]:
    """run.json, written by the first process and read by the others, so that all agree on the W&B id; and the last step
    of a run that is finished.

    Raises:
        ValueError: on every process, if the first one finds that the run directory cannot be used by this run.
    """
    from train.run import environment, run_record, starts
    from train.run.distributed import gather, is_first

    done, error = None, None
    if is_first():
        try:
            _lock(run_dir, held)
            done = _write_record(run_dir, config, args, total_steps)
            if done is None:
                starts.begin(run_dir, args.world_size, **environment.noted())
        except ValueError as problem:
            error = str(problem)
    done, error = gather((done, error))[0]
    if error:
        raise ValueError(error)
    record = run_record.read_record(run_dir)
    if record is None:
        raise ValueError(
            f"{run_dir} is not shared by all nodes: the first process wrote run.json, this one cannot see it"
        )
    return record, done


def _lock(run_dir: Path, held: ExitStack) -> None:
    """Take hold of the run directory, and remove what saves that were cut off have left."""
    from train.checkpoint import folders
    from train.run.run_lock import lock

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(run_dir))
    except OSError as error:
        raise ValueError(f"output_dir {run_dir} cannot be written: {error}: choose another") from None
    folders.clean(run_dir)
    preemption.unmark(run_dir)


def _write_record(run_dir: Path, config: RunConfig, args: SFTConfig, total_steps: int) -> int | None:
    """Write run.json once this start is known to belong to what lies there; the last step of a finished run."""
    from train.checkpoint.finished import finished_step
    from train.checkpoint.resume import check_start, identity
    from train.config.steps import rows_per_step_of
    from train.run import run_record

    record = run_record.make_record(run_dir, config, args.world_size)
    here = identity(config, args)
    if check_start(config, run_dir, {**record, **here}) and record["base_model"]:
        record |= run_record.beginning(run_dir)
    rows_a_step = rows_per_step_of(args, config.own.sequence_parallel)
    done = finished_step(config, run_dir, rows_a_step, total_steps)
    run_record.write_record(run_dir, {**record, **run_record.order(here, rows_a_step, total_steps)})
    return done


def _check_downloaded(config: RunConfig, manifest: Manifest) -> None:
    """What the check before the start could not look at: the weights of a model that was not on this machine.

    Raises:
        ValueError: on every process, if its rows for the shards' tokens would stay untrained.
    """
    from train.checks.untrained_rows import check_rows
    from train.run.distributed import gather, is_first

    problems, notes = gather(check_rows(config, manifest) if is_first() else ([], []))[0]
    if problems:
        raise ValueError("\n- ".join(problems))
    for note in notes:
        log.info(note)


def _learn_base(trainer: Any, resumed: Checkpoint | None, run_dir: Path, config: RunConfig) -> None:
    """Record the digests of a base model that was downloaded only now, once they agree with the checkpoint's.

    Raises:
        ValueError: on every process, if the checkpoint holds adapters of another one.
    """
    from train.checkpoint.resume import check_identity
    from train.run import run_record
    from train.run.distributed import gather, is_first

    extra = trainer.checkpointer.extra
    found = gather(run_record.base_model_of(config) if is_first() else None)[0]
    if resumed:
        check_identity(resumed, {**extra, "base_model": found})
        found = resumed.extra.get("base_model") or found
    extra["base_model"] = found
    if is_first():
        run_record.keep_base_model(run_dir, found)


if __name__ == "__main__":
    until_the_end = ExitStack()  # what is held in it outlives main: threads may still delete old checkpoints
    ending.end_here(until_the_end)
    sys.exit(main(own_process=True, held=until_the_end))
