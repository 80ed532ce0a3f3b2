"""The trainer's step next to a bare PyTorch loop and TRL's own SFTTrainer, with the same model, batches and optimizer.

    python -m tests.benchmarks.bench_step [--rounds 12] [--sizes 0.2M 8M]

One CPU process, fp32, packed rows, accumulation. The three take turns, round by round, so that a drift of the machine
hits all alike; a ratio is the median over the rounds of (its time / the bare loop's time of the same round). Times are
CPU seconds: one thread that waits for nothing, so that other work on the machine does not count. The bare loop has its
batches collated beforehand, the same LM head (TRL's, which never holds all logits), and logs nothing. The last line is
JSON with `ratio_to_bare`, `trl_ratio_to_bare`, `all_logits_ratio_to_bare` (a bare loop with torch's cross-entropy over
all logits) and `data_wait_share`, by size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_prep.shards import IGNORE_INDEX

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import numpy as np

SIZES: dict[str, dict[str, int]] = {  # about so many parameters
    "0.2M": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 512},
    "8M": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 4096},
}
SEQ_LEN, BATCH_ROWS, ACCUMULATION = 256, 1, 4
WARM_UP, STEPS = 2, 5  # of each round
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0


def main(argv: list[str] | None = None) -> int:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    arguments = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            sizes[size] = measure(size, arguments.rounds, Path(folder))
            print(size, json.dumps(sizes[size]), flush=True)
    names = ("ratio_to_bare", "trl_ratio_to_bare", "all_logits_ratio_to_bare", "data_wait_share")
    names += ("bare_step_seconds", "parameters")
    print(json.dumps({name: {size: found[name] for size, found in sizes.items()} for name in names}))
    return 0


def measure(size: str, rounds: int, folder: Path) -> dict[str, float | None]:
    """Ratios of one size."""
    rows = make_rows(SIZES[size]["vocab_size"])
    bare, ours = Bare(size, rows), Ours(size, rows, folder)
    contenders = [bare, ours, TRL(size, rows, folder), AllLogits(size, rows)]
    times = [{c.__class__.__name__: c.run() for c in contenders} for _ in range(rounds + 1)][1:]  # the first warms up
    return {
        "parameters": sum(p.numel() for p in bare.model.parameters()),
        "bare_step_seconds": statistics.median(t["Bare"] for t in times) / STEPS,
        "ratio_to_bare": statistics.median(t["Ours"] / t["Bare"] for t in times),
        "trl_ratio_to_bare": statistics.median(t["TRL"] / t["Bare"] for t in times),
        "all_logits_ratio_to_bare": statistics.median(t["AllLogits"] / t["Bare"] for t in times),
        "data_wait_share": ours.data_wait_share(),
    }


def make_rows(vocab_size: int) -> list[dict[str, list[int]]]:
    """Packed rows of SEQ_LEN tokens, half of them trained; enough for one round without a second epoch."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(BATCH_ROWS * ACCUMULATION * (WARM_UP + STEPS)):
        lengths: list[int] = []
        while (left := SEQ_LEN - sum(lengths)) > 0:
            lengths.append(min(left, int(random.integers(20, 120))))
        ids = random.integers(0, vocab_size, SEQ_LEN)
        labels = np.where(random.random(SEQ_LEN) < 0.5, ids, IGNORE_INDEX)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "seq_lengths": lengths})
        rows[-1]["sources"] = [int(s) for s in random.integers(0, 2, len(lengths))]
    return rows


def make_model(size: str) -> Any:
    """A random Llama; the same weights each time."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=SEQ_LEN)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


class Bare:
    """Forward, loss, backward, clipping, AdamW: nothing else."""

    def __init__(self, size: str, rows: list[dict[str, list[int]]]):
        import torch
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        self.model = make_model(size).train()
        self.prepare()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        groups = [rows[i : i + BATCH_ROWS] for i in range(0, len(rows), BATCH_ROWS)]
        self.batches = [collator(group) for group in groups]

    def prepare(self) -> None:
        """The LM head that TRL's trainer has too: it never holds all logits."""
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(self.model, outputs=("log_probs",))

    def loss(self, batch: dict[str, Any]) -> Any:
        """Negative log-likelihood of the trained tokens."""
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "labels")}
        return -self.model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum()

    def run(self) -> float:
        """Seconds of STEPS steps."""
        import torch

        for step in range(WARM_UP + STEPS):
            if step == WARM_UP:
                start = time.process_time()
            batches = self.batches[step * ACCUMULATION : (step + 1) * ACCUMULATION]
            tokens = sum((b["labels"] != IGNORE_INDEX).sum() for b in batches)
            for batch in batches:
                (self.loss(batch) / tokens).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.process_time() - start


class AllLogits(Bare):
    """The same with all logits and torch's cross-entropy."""

    def prepare(self) -> None:
        """Nothing."""

    def loss(self, batch: dict[str, Any]) -> Any:
        """Negative log-likelihood of the trained tokens."""
        import torch

        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        logits = self.model(**inputs, use_cache=False).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum")


def make_arguments(folder: Path) -> Any:
    """The same options for both trainers."""
    from trl import SFTConfig

    from train.config.own_options import OWN_DEFAULTS, PACKED_ROWS

    options = {
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH_ROWS,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": WARM_UP + STEPS,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "logging_steps": 5,
        "save_strategy": "no",
        "eval_on_start": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SFTConfig(**{**OWN_DEFAULTS, **options, **PACKED_ROWS})


def make_tokenizer() -> Any:
    """Any tokenizer: the rows are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


class TRL:
    """TRL's trainer as it is."""

    def __init__(self, size: str, rows: list[dict[str, list[int]]], folder: Path):
        from transformers import PrinterCallback

        self.trainer = self.make(size, rows, make_arguments(folder))
        self.trainer.remove_callback(PrinterCallback)
        self.timer = make_timer()
        self.trainer.add_callback(self.timer)

    def make(self, size: str, rows: list[dict[str, list[int]]], args: Any) -> Any:
        """The trainer."""
        from trl import SFTTrainer

        dataset = make_dataset(rows).remove_columns("sources")
        return SFTTrainer(make_model(size), args, train_dataset=dataset, processing_class=make_tokenizer())

    def run(self) -> float:
        """Seconds of STEPS steps, after WARM_UP."""
        self.trainer.train()
        return self.timer.ends[-1] - self.timer.ends[WARM_UP - 1]


class Ours(TRL):
    """This project's trainer, with everything that a run has."""

    def make(self, size: str, rows: list[dict[str, list[int]]], args: Any) -> Any:
        """The trainer."""
        from train.loop.data import number_rows
        from train.loop.trainer import PackedSFTTrainer

        trainer = PackedSFTTrainer(
            make_model(size),
            args,
            train_dataset=number_rows(make_dataset(rows)),
            processing_class=make_tokenizer(),
            source_names=["a", "b"],
            checkpoint_extra={},
        )
        trainer.compute_as(copies=False, keep_logits_gib=0.0)
        return trainer

    def data_wait_share(self) -> float | None:
        """Share of the time that the step waited for data; None where it was not logged."""
        shares = [entry["data_wait_share"] for entry in self.trainer.state.log_history if "data_wait_share" in entry]
        return statistics.median(shares) if shares else None


def make_dataset(rows: list[dict[str, list[int]]]) -> Any:
    """The rows with the columns and types of shards."""
    from datasets import Dataset, Features, List, Value

    return Dataset.from_list(rows, features=Features({name: List(Value("int32")) for name in rows[0]}))


def make_timer() -> Any:
    """A callback with the times of the steps' ends of the last `train()`."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        """Notes the clock."""

        ends: list[float]

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.ends = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ends.append(time.process_time())

    return Timer()


if __name__ == "__main__":
    sys.exit(main())
