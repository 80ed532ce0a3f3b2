"""How long training stands still for a checkpoint: written in the background, and all at once, on the same model.

    python -m tests.benchmarks.bench_save [--hidden 768] [--layers 8] [--saves 4] [--folder DIR]

Two runs of `train.sft` in one process, alike but for `save_in_background`. The last line is JSON: `sync_seconds`
(median over the saves of what training waited when it waited for all: written, digested, flushed, named),
`stall_seconds` (the same in the background), `ratio`, `best_ratio` (of the shortest of both: other work on the machine
only adds), `first_stall_seconds` (the first one finds its memory), `equal`
(the last checkpoints hold the same bytes of model and optimizer, and the final weights are the same), and
`verify_seconds` (reading a checkpoint and comparing its digests).
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

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from train.checkpoint import folders


def main(argv: list[str] | None = None) -> int:
    """Both runs, then the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to work: the file system is measured too")
    options = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(measure(Path(folder), options.hidden, options.layers, options.saves)))
    return 0


def measure(folder: Path, hidden: int, layers: int, saves: int) -> dict[str, object]:
    """The figures."""
    make_inputs(folder, hidden, layers)
    at_once, background = (run(folder, name, saves) for name in ("false", "true"))
    newest = folders.find_checkpoints(folder / "true")[-1]
    began = time.perf_counter()
    assert not list(folders.verify(newest))
    verify_seconds = time.perf_counter() - began
    sync, stall = (statistics.median(seconds[1:]) for seconds in (at_once, background))
    return {
        "mib": round(newest.size / 2**20, 1),
        "sync_seconds": round(sync, 3),
        "stall_seconds": round(stall, 3),
        "ratio": round(stall / sync, 3),
        "best_ratio": round(min(background[1:]) / min(at_once[1:]), 3),
        "first_stall_seconds": background[0],
        "equal": same_bytes(folder),
        "verify_seconds": round(verify_seconds, 3),
    }


def make_inputs(folder: Path, hidden: int, layers: int) -> None:
    """Shards of short rows, so that a step is short beside a save, and a random model."""
    from tests.conftest import build_tiny_tokenizer, save_tiny_model
    from tests.support.training import make_shards

    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "head_dim": hidden // 4,
    }
    save_tiny_model("llama", build_tiny_tokenizer(folder / "tokenizer"), folder / "model", sizes)
    make_shards(folder, str(folder / "tokenizer"), {"short": [1] * 40}, seq_len=64)


def run(folder: Path, background: str, saves: int) -> list[float]:
    """Seconds that training waited for each save but the last, which nothing follows."""
    from tests.support.saving_runs import run_here, single_config

    config = single_config(
        folder / f"{background}.yaml",
        data=str(folder / "shards"),
        model_name_or_path=str(folder / "model"),
        output_dir=str(folder / background),
        max_steps=4 * saves + 5,
        save_strategy="steps",
        save_steps=4,
    )
    assert run_here(config, "--save_in_background", background) == 0
    return [c.extra["stall_seconds"] for c in folders.find_checkpoints(folder / background)][:-1]


def same_bytes(folder: Path) -> bool:
    """Model and optimizer of the last checkpoints, and the final weights."""
    pairs = []
    for name in ("false", "true"):
        newest = folders.find_checkpoints(folder / name)[-1]
        final = folders.read(folder / name)
        pairs.append(
            [newest.files[f] for f in ("model.safetensors", "optimizer.pt")] + [final.files["model.safetensors"]]
        )
    return pairs[0] == pairs[1]


if __name__ == "__main__":
    sys.exit(main())
