"""Entry: add embedding rows to a model for tokens that only the shards' tokenizer has.

    packhaul add-tokens --model MODEL --data SHARDS --output FOLDER [--untie]

For a chat template with turn tokens that the base model does not have. Train from FOLDER. Full fine-tuning trains the
new rows as any others; with LoRA, `lora_modules_to_save: [embed_tokens, lm_head]` trains and saves them, which needs a
head of its own (`--untie`, where the model shares one matrix for both).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import speaker, usage_name
from data_prep.shards import TOKENIZER_DIR, Manifest, read_manifest
from train.checks.model_files import ADDED_ROWS

MULTIPLE = 64  # the number of rows is rounded up to it: such matrices multiply faster


def main(argv: list[str] | None = None) -> int:
    """Write the larger model; 2 when something has to be changed first."""
    parser = CommandParser(
        prog=usage_name("train.add_tokens"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub id; safetensors only")
    parser.add_argument("--data", type=Path, required=True, help="the shard directory")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--untie", action="store_true", help="give the head a matrix of its own")
    options = parser.parse_args(argv)
    try:
        done = add_tokens(options.model, options.data, options.output, untie=options.untie)
        print(f"{speaker('train.add_tokens')}: {done}")
    except ValueError as error:
        print(f"{speaker('train.add_tokens')}: error: {error}", file=sys.stderr)
        return 2
    return 0


def add_tokens(name: str, data: Path, output: Path, *, untie: bool = False) -> str:
    """Write the model with enough rows to `output`, under a temporary name until it is complete.

    New rows are drawn around the mean of the old ones (transformers' `mean_resizing`; Hewitt, 2021), always the same.

    Returns:
        A line about what was done.

    Raises:
        ValueError: the folder exists, or the model has rows for all tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if output.exists():
        raise ValueError(f"--output: {output} exists: give a folder that is not there yet")
    needed = _rows_needed(data)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto", use_safetensors=True)
    rows = model.get_input_embeddings().weight.shape[0]
    if needed <= rows and not untie:
        raise ValueError(f"{name} has {rows:,} rows, the shards need {needed:,}: there is nothing to add")
    if untie:
        _untie(model)
    torch.manual_seed(0)
    if needed > rows:
        model.resize_token_embeddings(needed, pad_to_multiple_of=MULTIPLE, mean_resizing=True)
    _write(model, data, output, rows)
    return f"{output}: {rows:,} rows before, {model.get_input_embeddings().weight.shape[0]:,} now"


def _rows_needed(data: Path) -> int:
    """One more than the largest id that a row of the shards or a conversation in their template can hold."""
    from transformers import AutoTokenizer

    manifest: Manifest = read_manifest(data)
    largest = max(shard["max_token_id"] for split in manifest["splits"].values() for shard in split["shards"])
    return max(largest + 1, len(AutoTokenizer.from_pretrained(data / TOKENIZER_DIR)))


def _untie(model: Any) -> None:
    import torch

    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.all_tied_weights_keys = {}  # else save_pretrained ties them again


def _write(model: Any, data: Path, output: Path, rows: int) -> None:
    from train.run.atomic_files import write_json_atomically

    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(data / TOKENIZER_DIR, unfinished)
    model.save_pretrained(unfinished)
    write_json_atomically(unfinished / ADDED_ROWS, {"first_added_row": rows})
    unfinished.rename(output)


if __name__ == "__main__":
    sys.exit(main())
