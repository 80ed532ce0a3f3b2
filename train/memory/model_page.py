"""What preflight says of a model alone: attention, template, token rows, LoRA's targets, memory of each way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.trainable_template import OwnTemplate, built_in_names, own_template
from train.checks.untrained_rows import rows_of_model
from train.memory import skeleton as skeletons
from train.memory.asked import Asked
from train.memory.attention_choice import chosen
from train.memory.changes import ZERO
from train.memory.estimate import GIB
from train.memory.fit import Fit
from train.memory.page import gib
from train.memory.setting import Setting, Sharding
from train.memory.skeleton import Skeleton
from train.model.attention import problems_of_layers
from train.run.model_identity import model_folder

_PROCESSES = 8  # where none are given
_RANK = 16


def model_lines(model: str, asked: Asked) -> Iterator[str]:
    """The page.

    Raises:
        ValueError, OSError: the model's config is not here and cannot be fetched, or its memory cannot be counted.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    setting = Setting(rows=1, seq_len=asked.seq_len or 4096, accumulation=2)
    yield f"model        {model}, {config.get_text_config().model_type}"
    yield from _packing(config, setting)
    yield from _template(model)
    setting, _ = chosen(setting, config, None)
    skeleton = skeletons.build(config)
    number = sum(p.numel() for p in skeleton.model.parameters())
    yield f"parameters   {number:,}, {len(skeleton.kinds)} layers"
    yield f"LoRA         lora_target_modules: [{', '.join(_linear_layers(skeleton))}]"
    yield from _memory(skeleton, setting, asked)


def _packing(config: Any, setting: Setting) -> Iterator[str]:
    text = config.get_text_config()
    if problems := list(problems_of_layers({**text.to_dict(), "model_type": text.model_type})):
        yield f"packed rows  refused: {problems[0]}"
        return
    try:
        found, reason = chosen(setting, config, None)
    except ValueError as error:
        yield f"packed rows  refused: {error}"
        return
    yield f"attention    {found.attention} ({reason.partition(';')[0]})"
    yield f"packed rows  {_verdict(text.model_type)}"


def _verdict(model_type: str) -> str:
    """What came of a small random model of the type, in the sweep that docs/models.md shows."""
    verdicts = json.loads(Path(__file__).with_name("packing_verdicts.json").read_text(encoding="utf-8"))
    kind, _, reason = verdicts.get(model_type, "").partition(": ")
    if kind.startswith("proven"):
        return "documents stay apart in a small model of this type (docs/models.md); the start of a run proves it again"
    if kind == "refused":
        return f"REFUSED, as a small model of this type was (docs/models.md): {reason}"
    return "not known for this type: the start of a run proves that documents stay apart, or refuses"


def _template(model: str) -> Iterator[str]:
    """Whether the model's own template can be trained on, and whether pre-training has left its tokens untrained."""
    try:
        found = own_template(model)
    except ValueError as error:
        yield f"template     not known: {error}"
        return
    if found is None:
        yield "template     none: name one in the recipe, such as chatml; a run's preflight looks at its tokens' rows"
        return
    if found.refusal:
        yield f"template     its own, which cannot be trained on: {found.refusal}"
        yield f"             name another one in the recipe: {', '.join(built_in_names())}"
    else:
        yield f"template     its own can be trained on (tried on a probe conversation: {found.origin})"
    yield from _rows(model, found)


def _rows(model: str, template: OwnTemplate) -> Iterator[str]:
    """Rows of the template's control tokens, read from the model's files."""
    folder = model_folder(model)
    if folder is None:
        yield "token rows   not looked at: the model's weights are not on this machine"
        return
    try:
        found = rows_of_model(folder, template.end_token_ids, template.tokenizer_size)
    except (OSError, ValueError) as error:
        yield f"token rows   not looked at: {error}"
        return
    if not found:
        yield "token rows   those of the template's control tokens are trained"
    for rows in found:
        yield f"token rows   UNTRAINED in {rows}"
    if found:
        yield "             adapters alone leave them so: train all weights, or name it in lora_modules_to_save,"
        yield "             or begin from the model's instruct version"


def _linear_layers(skeleton: Skeleton) -> list[str]:
    """Last names of the linear layers but the head, in the model's order: what all-linear means."""
    import torch

    head = skeleton.model.get_output_embeddings()
    modules = skeleton.model.named_modules()
    names = [name for name, m in modules if isinstance(m, torch.nn.Linear) and m is not head]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _memory(skeleton: Skeleton, setting: Setting, asked: Asked) -> Iterator[str]:
    """A line for each way to train, with and without checkpointing."""
    limit = round(asked.gpu_memory_gib * GIB) if asked.gpu_memory_gib else None
    yield f"memory       of one GPU, a row of {setting.seq_len:,} tokens a micro-batch, without and with checkpointing"
    fit = Fit(skeleton, setting, limit)
    for name, way in _ways(setting, asked.processes or _PROCESSES):
        fit = fit if way.adapters is None else Fit(skeleton, way, limit)  # passes of one model are traced once
        both = [dataclasses.replace(way, checkpointing=checkpointing) for checkpointing in (False, True)]
        sizes = "".join(f"{gib(fit.of(one).needed):>13}" for one in both)
        most = fit.largest_rows(both[1])
        rows = f"  at most {most or 'no'} row(s) with it" if limit else ""
        yield f"             {name:<40}{sizes}{rows}"


def _ways(setting: Setting, processes: int) -> Iterator[tuple[str, Setting]]:
    from peft import LoraConfig

    yield "all weights, fp32, one GPU", setting
    for name in ("zero2", "zero3", "zero3_offload"):
        sharding = Sharding(kind="zero", processes=processes, zero=ZERO[name])
        yield f"all weights, {name}, {processes} GPUs", dataclasses.replace(setting, sharding=sharding)
    adapters = LoraConfig(r=_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    lora = dataclasses.replace(setting, dtype="bfloat16", adapters=adapters)
    yield f"LoRA of rank {_RANK} on bf16, one GPU", lora
    yield f"QLoRA of rank {_RANK} on 4 bits, one GPU", dataclasses.replace(lora, bits=4, nested=True)
