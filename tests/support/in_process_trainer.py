"""The trainer in this process, on the CPU, in fp32: for tests that need no second process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.shards import TOKENIZER_DIR, read_manifest


def make_trainer(shards: Path, model_dir: Path, run_dir: Path, *, callbacks: Any = (), **options: Any) -> Any:
    """A PackedSFTTrainer over prepared shards. `options` are SFTConfig's and the trainer's own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from train.config.own_options import OWN_DEFAULTS, PACKED_ROWS
    from train.config.steps import rows_per_step_of
    from train.loop.data import load_split, number_rows, pad_to_multiple
    from train.loop.trainer import PackedSFTTrainer
    from train.run import log

    log.set_up()

    own = {name: options.pop(name) for name in ("on_bad_step", "spike_sigma", "stop") if name in options}
    defaults = {
        "output_dir": str(run_dir),
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_on_start": False,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    args = SFTConfig(**{**OWN_DEFAULTS, **defaults, **options, **PACKED_ROWS})
    manifest = read_manifest(shards)
    filler = manifest["end_token_ids"][0]
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    return PackedSFTTrainer(
        AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="sdpa"),
        args,
        train_dataset=number_rows(
            pad_to_multiple(load_split(shards, manifest, "train"), rows_per_step_of(args), filler)
        ),
        eval_dataset=load_split(shards, manifest, "eval").with_format("numpy") if evaluates else None,
        processing_class=AutoTokenizer.from_pretrained(shards / TOKENIZER_DIR),
        callbacks=list(callbacks),
        source_names=[source["name"] for source in manifest["sources"]],
        checkpoint_extra={},
        shards=[(shard["file"], shard["rows"]) for shard in manifest["splits"]["train"]["shards"]],
        save_in_background=False,
        **own,
    )
