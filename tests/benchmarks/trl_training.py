"""Plain TRL, for comparison: SFTTrainer in a script as TRL's documentation shows it, on packed rows or from text.

    accelerate launch ... -m tests.benchmarks.trl_training --model M --data D --output O

D is a shard directory (its packed rows are taken as they are) or a JSON file of Alpaca's rows (SFTTrainer renders,
tokenizes and packs them). One step. The last line is JSON: `rows` and `loss`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.benchmarks.trl_preparation import messages

STEP = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 1}
PACKED = {
    "padding_free": True,
    "max_length": None,
    "dataset_kwargs": {"skip_prepare_dataset": True},
}


def main(argv: list[str] | None = None) -> int:
    """Train one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if arguments.data.is_dir():
        files = sorted(arguments.data.glob("train/*.arrow"))
        rows = concatenate_datasets([Dataset.from_file(str(file)) for file in files]).remove_columns("sources")
        options = PACKED
    else:
        rows = Dataset.from_list([messages(row) for row in json.loads(arguments.data.read_text(encoding="utf-8"))])
        options = {"packing": True, "padding_free": True, "max_length": 2048, "assistant_only_loss": True}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, attn_implementation="sdpa", dtype="float32"),
        args=SFTConfig(output_dir=arguments.output, **STEP, **CPU, **options),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    loss = trainer.train().training_loss
    print(json.dumps({"rows": len(trainer.train_dataset), "loss": round(loss, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
