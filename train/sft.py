"""Entry: completion-only supervised fine-tuning on packed shards.

    accelerate launch --config_file configs/accelerate/NAME.yaml \\
        -m train.sft --config configs/train/X.yaml [--option value]

Run the same command again after a crash or a preemption: it goes on from the newest complete checkpoint.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from train import build_locks, preemption, watchdog
from train.config import load_run_config
from train.late_imports import end_start, leave_out_unused

_LOCK: list[Any] = []  # the open lock file of the run directory, held until this process ends


def main(argv: list[str] | None = None, *, own_process: bool = False) -> int:
    """Train to the end, or to a preemption (both 0); 2 when something has to be changed first.

    Args:
        own_process: nothing else runs in it, so that what this run does not use need not be imported.
    """
    preemption.install_handlers()
    _prepare_process()
    try:
        config = load_run_config(sys.argv[1:] if argv is None else argv)
        _preflight(config)
        if own_process:
            leave_out_unused(config)
        _train(config)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"sft: error: {error}", file=sys.stderr, flush=True)
        return 2
    except RuntimeError as error:
        if not (reason := watchdog.explain(error)):
            raise
        print(f"sft: error: {reason}", file=sys.stderr, flush=True)
        return 1
    finally:
        watchdog.end_watch()
    return 0


def _prepare_process() -> None:
    """Find the environment's own ninja, which DeepSpeed compiles with, also where the environment is not activated; and
    keep torch's notes about names that DeepSpeed still uses out of every step's log."""
    import warnings

    if os.environ.get("LOCAL_RANK", "0") == "0":
        build_locks.remove_stale()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..* is deprecated", category=FutureWarning)


def _preflight(config: Any) -> None:
    from train.preflight import check

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    problems = check(config, accelerate_config=None, world_size=world_size)
    if problems:
        raise ValueError(f"{len(problems)} problem(s) found before the start:\n- " + "\n- ".join(problems))


def _train(config: Any) -> None:
    from train import checkpoint, run_record
    from train.config import build_sft_config
    from train.data import load_manifest, verify_shards
    from train.resume import check_identity, find_resume, finished_step
    from train.trainer import is_main, steps_in_all
    from train.world_size import keep_global_batch, resumable

    run_dir = Path(config.sft["output_dir"])
    config, note = keep_global_batch(config, run_dir, int(os.environ.get("WORLD_SIZE", "1")))
    args = build_sft_config(config)  # starts the process group
    _check_world_size(args.world_size, config)
    _check_one_gpu(args.n_gpu)
    manifest = load_manifest(config.own.data)
    record = _start_record(run_dir, config, args)
    run_record.use_wandb_id(record, run_dir)
    log = _say if is_main(args) else _silent
    if note:
        log(note)
    total_steps = steps_in_all(manifest["splits"]["train"]["rows"], args)
    if done := finished_step(config, run_dir, args, total_steps, record["manifest_sha256"]):
        log(f"finished before, after {done} steps: {run_dir}. To go on, give more num_train_epochs or max_steps")
        return
    if config.own.verify_shards:
        verify_shards(config.own.data, manifest, args)

    trainer = _make_trainer(config, args, manifest, record, log)
    resumed = find_resume(config, run_dir, args, log)
    if resumed:
        check_identity(resumed, trainer.checkpoint_extra, log)
        log(f"resuming from {resumed.path} (step {resumed.step})")
        trainer.restore_counters(resumed)
        args.eval_on_start = False  # the base model was evaluated at the first start
    trainer.check_lead_at_start()
    end_start()
    with resumable(resumed, trainer, config, log) if resumed else nullcontext() as folder:
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
    if trainer.preempted:
        _check_saved(trainer, run_dir)
        trainer.accelerator.wait_for_everyone()  # nobody leaves before the mark: a launcher ends the others
        log(f"preempted after step {trainer.state.global_step}: the checkpoint is complete, run the same command again")
        return
    if is_main(args):
        checkpoint.withdraw(run_dir)  # of an earlier end: the files are about to be replaced
    trainer.accelerator.wait_for_everyone()
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    if is_main(args):
        trainer.state.save_to_json(str(run_dir / "trainer_state.json"))
        step, extra = trainer.state.global_step, trainer.checkpoint_extra
        extra = {**extra, "max_steps": trainer.state.max_steps}
        checkpoint.publish(run_dir, step=step, world_size=args.world_size, extra=extra)
    trainer.accelerator.wait_for_everyone()
    log(f"done after {trainer.state.global_step} steps: {run_dir}. Next: python -m train.export --checkpoint {run_dir}")


def _check_saved(trainer: Any, run_dir: Path) -> None:
    """Refuse to call a run preempted, and so ready to be requeued, whose last checkpoint could not be saved."""
    step = trainer.state.global_step
    if trainer.published_step != step:
        raise ValueError(
            f"stopped by a signal after step {step}, but checkpoint-{step} could not be saved (see above): make space "
            f"in {run_dir} and run the same command again; it goes on from the newest complete checkpoint there"
        )


def _check_world_size(world_size: int, config: Any) -> None:
    """Refuse a world that is not what was asked for: a launcher may start several worlds of one, and exit with 0."""
    wanted = config.own.expected_world_size
    if wanted is not None and world_size != wanted:
        raise ValueError(
            f"expected_world_size is {wanted}, but this world has {world_size} process(es): the launch "
            "configuration does not start what you asked for (see configs/accelerate and the num_processes it gives)"
        )


def _check_one_gpu(visible: int) -> None:
    """Refuse one process with several GPUs: the model would be spread over them, one at work at a time."""
    if visible > 1:
        raise ValueError(
            f"expected one GPU for each process, this process sees {visible}: start as many processes (such as "
            "configs/accelerate/zero3.yaml does), or show it one: CUDA_VISIBLE_DEVICES=0"
        )


def _check_distributed_type(found: str, config: Any) -> None:
    """Refuse plain data parallelism where DeepSpeed was asked for: accelerate falls back to it without a word."""
    asked_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    asked = config.own.expected_distributed_type or ("DEEPSPEED" if asked_deepspeed else found)
    if found != asked:
        raise ValueError(
            f"expected the distributed type {asked}, found {found}: do not set ACCELERATE_USE_CPU (it turns DeepSpeed "
            "into plain data parallelism); use `use_cpu: true` in both the accelerate YAML and the run config"
        )


def _start_record(run_dir: Path, config: Any, args: Any) -> dict[str, Any]:
    """run.json, written by the first process and read by the others, so that all agree on the W&B id."""
    from train import checkpoint, run_record
    from train.trainer import is_main

    if is_main(args):
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            _LOCK.append(run_record.lock(run_dir))
        except OSError as error:
            raise ValueError(f"output_dir {run_dir} cannot be written: {error}: choose another") from None
        checkpoint.clean(run_dir)
        preemption.unmark(run_dir)
        run_record.write_record(run_dir, run_record.make_record(run_dir, config, args.world_size))
    args.distributed_state.wait_for_everyone()
    record = run_record.read_record(run_dir)
    if record is None:
        raise ValueError(
            f"{run_dir} is not shared by all nodes: the first process wrote run.json, this one cannot see it"
        )
    return record


def _make_trainer(config: Any, args: Any, manifest: dict[str, Any], record: dict[str, Any], log: Any) -> Any:
    """The PackedSFTTrainer, with all its callbacks."""
    from transformers import AutoTokenizer
    from trl import get_peft_config, get_quantization_config

    from data_prep.shards import TOKENIZER_DIR
    from train import isolation, neftune
    from train.config import build_model_config
    from train.data import load_split, number_rows, pad_to_multiple
    from train.model import check_vocabulary, prepare_model_arguments
    from train.resume import identity
    from train.save_parts import rows_per_step
    from train.trainer import PackedSFTTrainer, steps_per_epoch
    from train.wandb_run import use_safe_wandb

    tokenizer = AutoTokenizer.from_pretrained(Path(config.own.data) / TOKENIZER_DIR)
    filler = manifest["end_token_ids"][0]
    train_rows = load_split(config.own.data, manifest, "train")
    eval_rows = load_split(config.own.data, manifest, "eval") if args.eval_strategy != "no" else None
    if manifest["recipe"]["order"] == "curriculum":
        args.train_sampling_strategy = "sequential"  # the rows lie in the order of the recipe's stages
        log("curriculum: rows are trained in the order of the shards")
    model_config = build_model_config(config)
    asked = {"asked_dtype": config.model.get("dtype"), "allow_pickle": config.own.allow_pickle}
    log(f"attention: {prepare_model_arguments(model_config, args, seq_len=manifest['seq_len'], **asked)}")
    stop = preemption.make_callback()
    trainer = PackedSFTTrainer(
        model=model_config.model_name_or_path,
        args=args,
        train_dataset=number_rows(pad_to_multiple(train_rows, rows_per_step(args), filler)),
        eval_dataset=eval_rows
        and number_rows(pad_to_multiple(eval_rows, args.world_size * args.per_device_eval_batch_size, filler)),
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
        callbacks=[*_make_callbacks(config), stop, watchdog.make_callback(args)],
        source_names=[source["name"] for source in manifest["sources"]],
        checkpoint_extra={k: record[k] for k in ("manifest_sha256", "wandb_run_id", "git_commit")}
        | identity(config, args),
        shards=[(shard["file"], shard["rows"]) for shard in manifest["splits"]["train"]["shards"]],
        on_bad_step=config.own.on_bad_step,
        spike_sigma=config.own.spike_sigma,
        baseline=record["baseline"],
        sampler=eval_rows and _make_sampler(config, args, manifest, eval_rows, tokenizer),
    )
    trainer.stop = stop
    trainer.start_saving(log, config.own.save_in_background)
    if "wandb" in args.report_to:
        use_safe_wandb(trainer, record)
    distributed_type = trainer.accelerator.distributed_type.value
    _check_distributed_type(distributed_type, config)
    check_vocabulary(trainer.model, manifest)
    trainer.add_callback(isolation.make_callback(trainer, log))
    trainer.add_callback(neftune.make_callback(trainer))
    rows = manifest["splits"]["train"]["rows"]
    log(
        f"{args.world_size} process(es), {distributed_type}: {rows_per_step(args)} packed rows a "
        f"step (up to {rows_per_step(args) * manifest['seq_len']:,} tokens), {rows:,} rows, "
        f"{steps_per_epoch(rows, args):,} steps an epoch"
    )
    return trainer


def _make_callbacks(config: Any) -> list[Any]:
    from transformers import EarlyStoppingCallback

    if config.own.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(config.own.early_stopping_patience, config.own.early_stopping_threshold)]


def _make_sampler(config: Any, args: Any, manifest: dict[str, Any], eval_rows: Any, tokenizer: Any) -> Any:
    from train.samples import Sampler, choose_prompts

    new_tokens = config.own.sample_max_new_tokens
    names = [source["name"] for source in manifest["sources"]]
    prompts = choose_prompts(eval_rows, names, config.own.sample_prompts, most_tokens=manifest["seq_len"] - new_tokens)
    if not prompts:
        return None
    return Sampler(
        prompts,
        tokenizer,
        Path(args.output_dir),
        end_token_ids=manifest["end_token_ids"],
        max_new_tokens=new_tokens,
    )


def _say(message: str) -> None:
    print(f"sft: {message}", flush=True)


def _silent(message: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main(own_process=True))
