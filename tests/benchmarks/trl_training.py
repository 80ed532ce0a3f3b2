"""Plain TRL, for comparison: SFTTrainer in a script as TRL's documentation shows it, on packed rows or from text.

    accelerate launch ... -m tests.benchmarks.trl_training MODEL DATA OUTPUT

DATA is a shard directory (its packed rows are taken as they are) or a JSON file of Alpaca's rows (SFTTrainer renders,
tokenizes and packs them). One step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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


def main() -> None:
    """Train one step."""
    model_name, data, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    if Path(data).is_dir():
        files = sorted(Path(data).glob("train/*.arrow"))
        rows = concatenate_datasets([Dataset.from_file(str(file)) for file in files]).remove_columns("sources")
        options = PACKED
    else:
        rows = Dataset.from_list([messages(row) for row in json.loads(Path(data).read_text(encoding="utf-8"))])
        options = {"packing": True, "padding_free": True, "max_length": 2048, "assistant_only_loss": True}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_name, attn_implementation="sdpa", dtype="float32"),
        args=SFTConfig(output_dir=output, **STEP, **CPU, **options),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()


if __name__ == "__main__":
    main()
