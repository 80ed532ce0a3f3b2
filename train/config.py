"""Run configuration: one YAML file plus flags, by the libraries' own option names.

    python -m train.sft --config configs/train/X.yaml --learning_rate 1e-5 --lora_target_modules q_proj v_proj

A run's options are those of trl's SFTConfig (transformers' TrainingArguments included), those of trl's ModelConfig, and
the few of `OwnOptions`. A flag wins over the file.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.strict_files import read_yaml
from train.options import Option, convert, model_options, parse, sft_options
from train.refusals import REFUSALS, RENAMED, refused_combinations, refused_values

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig


def _own(help_text: str, default: Any = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What the libraries have no option for."""

    data: str = _own("Shard directory made by data_prep.prepare. Required.", "")
    expected_world_size: int | None = _own("Refuse to train with another number of processes than this.")
    expected_distributed_type: str | None = _own(
        "Refuse to train with another distributed type than this, as accelerate names it.",
        choices=("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED", "FSDP"),
    )
    resume: str = _own(
        "auto: go on from the newest complete checkpoint in output_dir, or begin if there is none. never: begin, and "
        "refuse an output_dir that holds checkpoints. Or the folder of the checkpoint to go on from.",
        "auto",
    )
    allow_pickle: bool = _own(
        "Also load a model whose weights are pickled files (*.bin): loading one can run any code its author put there.",
        False,
    )
    verify_shards: bool = _own(
        "Read all shards at the start and compare them with their hashes in the manifest; the processes share the "
        "reading.",
        True,
    )
    verify_checkpoint: bool = _own(
        "Read the checkpoint to go on from and compare it with the digests made when it was written; the processes "
        "share the reading. A damaged one is renamed, and an older one used.",
        True,
    )
    reinitialize_optimizer: bool = _own(
        "On another number of processes or another ZeRO stage, go on with the weights of the checkpoint and fresh "
        "optimizer states: for optimizers whose states cannot be rearranged, such as the 8-bit ones.",
        False,
    )
    save_in_background: bool = _own(
        "Training goes on as soon as a checkpoint's states are copied in the computer's memory, where there is place "
        "for them; they are written and made durable meanwhile. The memory is kept for the next save. False: it waits "
        "for all of that.",
        True,
    )
    on_bad_step: str = _own(
        "What happens to a step whose loss or gradient norm is not a number, or whose loss is a spike (spike_sigma), "
        "before it reaches the weights. Its documents are written to bad_steps/ in output_dir. ignore: nothing is "
        "looked at.",
        "stop",
        choices=("stop", "skip", "ignore"),
    )
    spike_sigma: float | None = _own(
        "A loss so many standard deviations above the mean of the last 100 steps is a spike, such as 8. Not given: "
        "none is."
    )
    sample_prompts: int = _own(
        "Held-out prompts per source that are answered at each evaluation, into samples.jsonl and W&B. 0: none.", 2
    )
    sample_max_new_tokens: int = _own("The most tokens of such an answer.", 64)
    early_stopping_patience: int | None = _own(
        "Stop after so many evaluations in a row that do not improve metric_for_best_model. Not given: never."
    )
    early_stopping_threshold: float = _own("What counts as an improvement: more than this.", 0.0)


# What packed rows need, whatever the libraries' defaults are; `train.refusals` refuses any other value.
PACKED_ROWS: dict[str, Any] = {
    "packing": False,
    "padding_free": True,
    "max_length": None,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "remove_unused_columns": False,
    "average_tokens_across_devices": True,
}
# Other defaults than the libraries'; a run may set them. True would put the mean of earlier losses in the place of a
# NaN, in the logs and for everything that watches them. The evaluation before the first step is what later ones are
# compared with.
OWN_DEFAULTS: dict[str, Any] = {"logging_nan_inf_filter": False, "eval_on_start": True}
_REQUIRED = {
    "data": "the shard directory made by data_prep.prepare",
    "output_dir": "the run directory, where checkpoints and the final model go",
    "model_name_or_path": "the folder or hub id of the model to train",
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's options: those given, each in the type that its class takes."""

    own: OwnOptions
    sft: dict[str, Any]
    model: dict[str, Any]

    def value(self, name: str) -> Any:
        """An option's value: as given, else what packed rows need, else our or the library's default."""
        for given in (self.sft, self.model, PACKED_ROWS, OWN_DEFAULTS):
            if name in given:
                return given[name]
        return {**sft_options(), **model_options()}[name].default

    @property
    def eval_on_start(self) -> bool:
        """Whether the base model is evaluated before the first step."""
        return bool(self.value("eval_on_start")) and self.value("eval_strategy") != "no"

    @property
    def optim(self) -> str:
        """The optimizer's name."""
        return self.sft.get("optim", "adamw_torch_fused")  # the library's default for torch of today

    @property
    def precision(self) -> str:
        """The precision that training runs in, as accelerate names it: "bf16", "fp16" or "no"."""
        if self.value("fp16"):
            return "fp16"
        return "bf16" if self.value("bf16") is not False else "no"


def own_options() -> dict[str, Option]:
    """Our own options, in the form of the libraries'."""
    options = {}
    for f in fields(OwnOptions):
        kinds = frozenset(str(f.type).replace("None", "none").split(" | "))
        options[f.name] = Option(name=f.name, declared_in="OwnOptions", kinds=kinds, default=f.default, **f.metadata)
    return options


def known_options() -> dict[str, Option]:
    """Every option that a run may give, by name."""
    return {**own_options(), **model_options(), **sft_options()}


def load_run_config(argv: list[str]) -> RunConfig:
    """Read `--config FILE` and the other flags.

    Raises:
        ValueError: the file cannot be read; or, with every problem found, one a line: unknown or repeated options,
            wrong types, refused options, required options that are missing.
        SystemExit: 0, after printing all options, if `--help` is among the flags.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(f"python -m train.{Path(sys.argv[0]).stem}"))
        raise SystemExit(0)
    problems: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, origin in _given(argv, problems):
        try:
            option = _find(name)
            values[name] = _from_flag(option, value) if isinstance(value, _Flag) else convert(option, value)
            origins[name] = origin
        except ValueError as error:
            problems.append(f"{origin}: {error}")
    problems += _check(values, origins)
    if problems:
        raise ValueError("the run configuration cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    return _assemble(values)


class _Flag(list[str]):
    """The texts that follow a flag, not yet parsed."""


def _given(argv: list[str], problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    """(option, value, where it was given), the file's first, so that flags win."""
    flags = _split_flags(argv, problems)
    config = flags.pop("config", None)
    if config is not None and len(config) != 1:
        problems.append(f"--config: expected one file, found {list(config)}")
    elif config is not None:
        mapping, lines = read_yaml(config[0])
        for name, value in mapping.items():
            if name not in flags:
                yield name, value, f"{config[0]} line {lines.get(name, '?')}: {name}"
    for name, texts in flags.items():
        yield name, texts, f"flag --{name}"


def _split_flags(argv: list[str], problems: list[str]) -> dict[str, _Flag]:
    flags: dict[str, _Flag] = {}
    current: _Flag | None = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in flags:
                problems.append(f"flag --{name}: given twice: keep one")
            current = flags[name] = _Flag([text] if equals else [])
        elif current is None:
            problems.append(f"{word!r}: expected a flag such as --config FILE before it")
        else:
            current.append(word)
    return flags


def _find(name: str) -> Option:
    known = known_options()
    if name in known:
        return known[name]
    if name in RENAMED:
        raise ValueError(f"unknown option {name!r}: {RENAMED[name]}")
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see --help for all options"
    raise ValueError(f"unknown option {name!r}; {hint}")


def _from_flag(option: Option, texts: _Flag) -> Any:
    if not texts and "bool" in option.kinds:
        return True
    if len(texts) > 1 and "list" in option.kinds:
        return list(texts)
    if len(texts) != 1:
        raise ValueError(f"expected one value of type {option.type_text}, found {len(texts)}: {list(texts)}")
    return parse(option, texts[0])


def _check(values: dict[str, Any], origins: dict[str, str]) -> Iterator[str]:
    sft = {name: value for name, value in values.items() if name in sft_options()}
    model = {name: value for name, value in values.items() if name in model_options()}
    for name, reason in [*refused_values(values), *refused_combinations(sft, model)]:
        yield f"{origins.get(name, name)}: {reason}"
    for name, meaning in _REQUIRED.items():
        if not values.get(name):
            yield f"{name}: missing: give {meaning}, in the file or as --{name}"
    yield from (f"{origins.get(name, name)}: {problem}" for name, problem in _check_own(values))


def _check_own(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, what is wrong) among our own options."""
    lowest = {"expected_world_size": 1, "sample_prompts": 0, "sample_max_new_tokens": 1, "early_stopping_patience": 1}
    for name, least in lowest.items():
        if (value := values.get(name)) is not None and value < least:
            yield name, f"expected {least} or more, found {value}"
    if (sigma := values.get("spike_sigma")) is not None:
        if sigma <= 0:
            yield "spike_sigma", f"expected a number above 0, found {sigma}"
        if values.get("on_bad_step") == "ignore":
            yield "spike_sigma", "does nothing with on_bad_step: ignore: write stop or skip, or leave it out"
        if values.get("fp16"):
            yield "spike_sigma", "is refused with fp16: a skipped step would lower the loss scale: write bf16"
    if values.get("early_stopping_patience") is not None and not values.get("metric_for_best_model"):
        yield "early_stopping_patience", "expects metric_for_best_model: name what is to improve, such as eval_loss"


def _assemble(values: dict[str, Any]) -> RunConfig:
    return RunConfig(
        own=OwnOptions(**{name: value for name, value in values.items() if name in own_options()}),
        sft={name: value for name, value in values.items() if name in sft_options()},
        model={name: value for name, value in values.items() if name in model_options()},
    )


def build_sft_config(config: RunConfig) -> SFTConfig:
    """trl's SFTConfig with what packed rows need. Imports torch; under `accelerate launch` it also joins the world.

    Raises:
        ValueError: the world joined is not the launcher's, or the libraries refuse the options.
    """
    from trl import SFTConfig

    defaults = {**OWN_DEFAULTS, "data_seed": config.value("seed")}
    if str(config.value("metric_for_best_model")).endswith("_loss_change"):
        defaults["greater_is_better"] = False  # the library knows that only of names that end with "loss"
    if config.own.early_stopping_patience is not None:
        defaults["restore_callback_states_from_checkpoint"] = True  # how long it has been patient
    options = {**defaults, **config.sft, **PACKED_ROWS, "eval_on_start": config.eval_on_start}
    args = SFTConfig(**options)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != launched:  # DeepSpeed without a GPU: every process would train alone, and end with 0
        raise ValueError(
            f"the launcher started a world of {launched} process(es), this process joined one of {args.world_size}: no "
            "GPU was found; to train on the CPU write use_cpu: true in the run config"
        )
    return args


def build_model_config(config: RunConfig) -> ModelConfig:
    """trl's ModelConfig. Imports torch."""
    from trl import ModelConfig

    model_config = ModelConfig(**config.model)
    asked = config.model.get("lora_target_modules")
    if isinstance(asked, list) and asked != ["all-linear"]:
        model_config.lora_target_modules = asked  # TRL makes one name a string, which peft reads as a pattern
    return model_config


def help_text(command: str, extra: str = "") -> str:
    """Usage and every option with its type, default and help, grouped by the class that declares it.

    Args:
        command: what the usage line begins with.
        extra: lines about the command's own flags.
    """
    lines = [f"usage: {command} --config configs/train/X.yaml [--option value ...]", ""]
    lines += [extra.rstrip(), ""] if extra else []
    lines += ["Options, in the file or as flags (a flag wins). Lists: --name a b c. Mappings: as JSON.", ""]
    titles = {
        "OwnOptions": "packhaul's own options",
        "ModelConfig": "The model: trl's ModelConfig",
        "SFTConfig": "Supervised fine-tuning: trl's SFTConfig",
        "TrainingArguments": "Training: transformers' TrainingArguments, with trl's defaults",
    }
    for group, title in titles.items():
        lines += [f"{title}:", *_group_help(group), ""]
    lines += ["Not usable here:", *(_entry(f"--{name}", f"{r.reason}.") for name, r in REFUSALS.items())]
    return "\n".join(lines)


def _group_help(group: str) -> Iterator[str]:
    changed = {**OWN_DEFAULTS, **PACKED_ROWS}
    for name, option in known_options().items():
        if option.declared_in == group and name not in REFUSALS:
            default = "" if name in _REQUIRED else f" (default: {changed.get(name, option.default)!r})"
            yield _entry(f"--{name} {option.type_text}", f"{option.help}{default}")


def _entry(head: str, text: str) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    return f"  {head}\n" + textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
