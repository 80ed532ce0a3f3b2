"""Every causal language model of transformers, tiny and random: whether packed documents are as separate ones.

    python -m tests.benchmarks.model_sweep [TYPE ...] [--write docs/models.md]

For each type of the mapping a small random model is made (`tests.support.small_models`), saved and loaded again. The
attention is chosen and layers with a state are treated as in training, and the start-up proofs run: the loss head, and
packed against separate, in logits and in gradients. LoRA's reach with `all-linear` is counted. Each type has a process
of its own and a time limit.
`--write` puts the table of all types into the page. The last line is JSON: how many types have which verdict.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

SECONDS = 240  # for one type
PROVEN = "proven"
VERDICTS = Path(__file__).parents[2] / "train" / "memory" / "packing_verdicts.json"
BEGIN, END = "<!-- table: model_sweep -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Row:
    """What came of a type."""

    kind: str
    attention: str  # that training would take on a CPU
    state: str  # layers that see one document a row
    lora: str  # layers that all-linear adapts
    verdict: str


def main(argv: list[str] | None = None) -> int:
    """Sweep, and print or write the table."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types (all)")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args(argv)
    rows = []
    import_everything()
    for kind in options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        rows.append(sweep(kind))
        print(line(rows[-1]), flush=True)
    if options.write:
        write(options.write, rows)
        write_verdicts(options.write)
    verdicts = Counter(re.split("[:;]", row.verdict)[0] for row in rows)
    print(json.dumps({"command": "python -m tests.benchmarks.model_sweep", "types": len(rows), **verdicts}))
    return 0


def import_everything() -> None:
    """What each type's process needs, so that it forks with it; nothing of torch may run before."""
    import peft
    import trl.trainer.utils

    import train.model.documentwise
    import train.model.head_loss
    import train.model.isolation
    import train.model.varlen

    assert all((peft, trl.trainer.utils, train.model))


def line(row: Row) -> str:
    """A row of the table."""
    return "| " + " | ".join(asdict(row).values()) + " |"


def write(page: Path, rows: list[Row]) -> None:
    """Replace the table between its two marks."""
    text = page.read_text(encoding="utf-8")
    head = "| type | attention on a CPU | one document a row | LoRA all-linear | verdict |\n|---|---|---|---|---|\n"
    table = head + "".join(line(row) + "\n" for row in rows)
    found = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    page.write_text(found.sub(lambda _: f"{BEGIN}\n{table}{END}", text), encoding="utf-8")


def verdicts(page: Path) -> dict[str, str]:
    """By type, as the table says."""
    inside = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [row.strip("| ").split(" | ") for row in inside.strip().splitlines()[2:]]
    return {row[0]: row[-1] for row in rows}


def write_verdicts(page: Path) -> None:
    """For preflight, which says of a model what came of its type."""
    text = json.dumps(verdicts(page), indent=1, ensure_ascii=False)
    VERDICTS.write_text(text + "\n", encoding="utf-8")


def sweep(kind: str) -> Row:
    """What comes of a type, in a process of its own."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_in_process, args=(kind, results))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        return Row(kind, "", "", "", f"not tried: took over {SECONDS} s")
    if results.empty():
        return Row(kind, "", "", "", f"not tried: the process ended with {process.exitcode}")
    return Row(*results.get())


def _in_process(kind: str, results: Any) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found = ["", "", ""]
    try:
        verdict = examine(kind, found)
    except Exception as error:
        verdict = f"refused: {_short(error)}"
    results.put((kind, *found, verdict))


def _short(error: Exception) -> str:
    """A reason that fits a cell."""
    text = re.sub(r"\s+", " ", str(error) or type(error).__name__).replace("|", "/")
    text = re.sub(r"{[^{}]*}", lambda found: f"{{{', '.join(sorted(found[0][1:-1].split(', ')))}}}", text)  # sets
    return text if len(text) <= 200 else text[:197] + "..."


def examine(kind: str, found: list[str]) -> str:
    """The verdict.

    Args:
        found: attention, layers with a state and LoRA's reach, filled in as far as it comes.
    """
    from tests.support.small_models import NO_MODEL

    if kind in NO_MODEL:
        return f"not built: {NO_MODEL[kind]}"
    try:
        model, loads = build(kind, found)
    except NotBuilt as error:
        return f"not built: {_short(error)}"
    prove(model, found)
    return f"{PROVEN}{loads}"


class NotBuilt(Exception):
    """transformers makes no such model of our sizes, or not without other packages."""


def prove(model: Any, found: list[str]) -> None:
    """As training does at its start.

    Raises:
        ValueError: the model is refused.
    """
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from train.model import documentwise, head_loss, isolation, mask_positions

    found[1] = ", ".join(f"{n} {name}" for name, n in documentwise.install(model).items())
    mask_positions.install(model)
    add_fused_lm_head(model, outputs=("log_probs", "is_top1"))
    head_loss.check(model)
    ids = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    isolation.check(model, ids, torch.device("cpu"), torch.float32)
    try:
        found[2] = lora_reach(model)
    except ValueError as error:
        found[2] = f"refused: {_short(error)}"


def build(kind: str, found: list[str]) -> tuple[Any, str]:
    """A small random model, saved and loaded again, and what is wrong with that.

    Raises:
        NotBuilt: there is no such model.
        ValueError: it is refused before there is one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.small_models import small_config

    try:
        config = small_config(kind)
    except Exception as error:
        raise NotBuilt(str(error)) from error
    chosen = found[0] = choose_attention(config)
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=chosen, dtype=torch.float32).eval()
    except Exception as error:
        raise NotBuilt(str(error).strip()) from error
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=chosen, dtype=torch.float32), ""
        except ValueError as error:
            return model, f"; saved, it does not load: {_short(error)}"


def choose_attention(config: Any) -> str:
    """What training takes on a CPU.

    Raises:
        ValueError: the model's layers cannot be packed.
    """
    from transformers import AutoModelForCausalLM

    from train.model import attention, varlen

    varlen.register()
    text = config.get_text_config()
    for problem in attention.problems_of_layers(text.to_dict()):
        raise ValueError(problem)
    setting = attention.Setting(
        use_cpu=True,
        half=False,
        batch_tokens=isolation_tokens(),
        model_class=AutoModelForCausalLM._model_mapping.get(type(config), None),
        config=text,
    )
    return attention.choose(None, setting)[0]


def isolation_tokens() -> int:
    """Tokens of the proof's row."""
    from train.model.isolation import TOKENS

    return TOKENS


def lora_reach(model: Any) -> str:
    """Of the linear layers, how many all-linear adapts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    linear = sum(isinstance(module, torch.nn.Linear | Conv1D) for module in model.modules())
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    reached = sum(isinstance(module, LoraLayer) for module in adapted.modules())
    return f"{reached} of {linear} linear layers"


if __name__ == "__main__":
    sys.exit(main())
