"""TRL's own preparation, for comparison: template, assistant mask and packing, as SFTTrainer does it at start.

    python -m tests.benchmarks.trl_preparation --data FOLDER [--num-proc 2] [--seq-len 4096]

Qwen3's template as TRL trains with it, since TRL has no masks for a template without marks. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")


def main(argv: list[str] | None = None) -> int:
    """Prepare Alpaca and print tokens per second and the efficiency of packing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets and tokenizers")
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=4096)
    arguments = parser.parse_args(argv)
    data, seq_len = arguments.data, arguments.seq_len
    import datasets
    import pyarrow.compute as pc
    from trl import SFTTrainer

    datasets.disable_caching()
    tokenizer = load_tokenizer(data)
    rows = json.loads((data / "text/en/alpaca_52k.json").read_text(encoding="utf-8"))
    raw = datasets.Dataset.from_list([messages(row) for row in rows])
    model, args = tiny_model(len(tokenizer)), options(arguments.num_proc, seq_len)
    started, cpu_before = time.perf_counter(), processor_seconds()
    packed = SFTTrainer(model=model, args=args, train_dataset=raw, processing_class=tokenizer).train_dataset
    seconds, cpu = time.perf_counter() - started, processor_seconds() - cpu_before
    tokens = pc.sum(pc.list_flatten(packed.with_format("arrow")[:]["seq_lengths"])).as_py()
    efficiency = tokens / (len(packed) * seq_len)
    result = {"tokens_per_second": round(tokens / seconds), "seconds": round(seconds, 2)}
    result["cpu"] = round(cpu / tokens * 1e6, 2)  # seconds of processor time per million tokens
    print(json.dumps({**result, "efficiency": round(efficiency, 4)}))
    return 0


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def load_tokenizer(data: Path) -> Any:
    """Qwen3's, with TRL's training template."""
    import trl
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers/qwen3")
    template = Path(trl.__file__).parent / "chat_templates/qwen3_training.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def messages(row: dict[str, str]) -> dict[str, Any]:
    """A row in the form that TRL takes."""
    question = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
    answer = row["output"] or " "
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def tiny_model(vocabulary: int) -> Any:
    """A model that costs nothing to make: only the preparation is looked at."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, **sizes, **heads))


def options(num_proc: int, seq_len: int) -> Any:
    """TRL's options for packing with a loss on the assistant's words only."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        packing=True,
        max_length=seq_len,
        assistant_only_loss=True,
        dataset_num_proc=num_proc,
        report_to="none",
        gradient_checkpointing=False,
    )


if __name__ == "__main__":
    sys.exit(main())
