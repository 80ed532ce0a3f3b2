"""Every causal language model of transformers, tiny and random: whether packed documents are as separate ones.

    python -m tests.benchmarks.model_sweep [TYPE ...] [--write docs/models.md]

For each type of the mapping a small random model is made, the attention is chosen and layers with a state are treated
as in training, and the start-up proof runs: packed against separate, in logits and in gradients. LoRA's reach with
`all-linear` is counted, and the model is saved and loaded again. Each type has a process of its own and a time limit.
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
BEGIN, END = "<!-- table: model_sweep -->", "<!-- end of table -->"
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 4,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_topk": 2,
    "moe_k": 2,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "sliding_window": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "state_size": 16,
    "conv_kernel": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "lru_width": 64,
    "attention_hidden_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_token_id": 3,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "kv_channels": 16,
    "block_size": 512,
}
# What the sizes above do not fit, by type.
OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "expand": 2},
    "jamba": {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 32},
}


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
    verdicts = Counter(row.verdict.partition(":")[0] for row in rows)
    print(json.dumps({"command": "python -m tests.benchmarks.model_sweep", "types": len(rows), **verdicts}))
    return 0


def import_everything() -> None:
    """What each type's process needs, so that it forks with it; nothing of torch may run before."""
    import peft
    import trl.trainer.utils

    import train.model.documentwise
    import train.model.isolation
    import train.model.varlen

    assert all((peft, trl.trainer.utils, train.model.documentwise, train.model.isolation, train.model.varlen))


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
    return text if len(text) <= 160 else text[:157] + "..."


def examine(kind: str, found: list[str]) -> str:
    """The verdict.

    Args:
        found: attention, layers with a state and LoRA's reach, filled in as far as it comes.
    """
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from train.model import documentwise, isolation, mask_positions

    try:
        model, found[0] = build(kind)
    except Exception as error:
        return f"not built: {_short(error)}"
    found[1] = ", ".join(f"{n} {name}" for name, n in documentwise.install(model).items())
    mask_positions.install(model)
    add_fused_lm_head(model, outputs=("log_probs", "is_top1"))
    ids = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    isolation.check(model, ids, torch.device("cpu"), torch.float32)
    try:
        found[2] = lora_reach(model)
    except ValueError as error:
        found[2] = f"refused: {_short(error)}"
    return PROVEN


def build(kind: str) -> tuple[Any, str]:
    """A small random model, and the attention that is chosen for it; saved and loaded again."""
    import torch
    from transformers import AutoModelForCausalLM

    from train.model import attention, varlen

    varlen.register()
    torch.manual_seed(0)
    config = small_config(kind)
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
    chosen, _ = attention.choose(None, setting)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=chosen, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=chosen, dtype=torch.float32), chosen


def isolation_tokens() -> int:
    """Tokens of the proof's row."""
    from train.model.isolation import TOKENS

    return TOKENS


def small_config(kind: str) -> Any:
    """The type's default configuration with small sizes."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    sizes = _fitting(default)
    if "qk_rope_head_dim" in sizes:  # latent attention: that is its heads' size
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    for name in ("text_config", "decoder_config", "llm_config"):
        inner = getattr(default, name, None)
        if inner is not None:
            sizes[name] = {**inner.to_dict(), **_fitting(inner), "layer_types": None}
    types = default.__dict__.get("layer_types")  # some work it out
    if types and "layer_types" not in OWN.get(kind, {}):
        kinds = list(dict.fromkeys(types))
        sizes["layer_types"] = (kinds * 4)[: SIZES["num_hidden_layers"]]
    return type(default)(**sizes)


def _fitting(default: Any) -> dict[str, Any]:
    """The sizes that this configuration has."""
    own = OWN.get(default.model_type, {})
    return {**{name: size for name, size in SIZES.items() if _has(default, name)}, **own}


def _has(config: Any, name: str) -> bool:
    """Whether a size can be given for all layers."""
    prop = getattr(type(config), name, None)
    if isinstance(prop, property) and prop.fset is None:
        return False
    try:
        return hasattr(config, name)
    except RuntimeError:  # other layers have other ones
        return False


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
