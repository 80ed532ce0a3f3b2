"""The run configuration: one YAML file and flags, read, checked and handed to the libraries.

    packhaul train --config configs/train/X.yaml --learning_rate 1e-5 --lora_target_modules q_proj v_proj

A run's options are those of trl's SFTConfig (transformers' TrainingArguments included), those of trl's ModelConfig, and
the few of `OwnOptions`, by the same names. A flag wins over the file.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.program_name import usage_name
from data_prep.strict_files import read_yaml
from train.config.compile_defaults import compile_layers_by_default
from train.config.library_options import Option, convert, model_options, parse, sft_options
from train.config.option_help import help_text
from train.config.own_options import (
    HANG_PHASES,
    OWN_DEFAULTS,
    PACKED_ROWS,
    REQUIRED,
    OwnOptions,
    known_options,
    own_options,
)
from train.config.refused_options import REFUSALS, RENAMED, refused_combinations, refused_values
from train.config.row_parts_options import refused_with_parts
from train.config.secrets_in_options import hide, refused_secrets
from train.config.value_ranges import values_out_of_range

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig


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
        return str(self.sft.get("optim", "adamw_torch_fused"))  # the library's default for today's torch

    @property
    def precision(self) -> str:
        """The precision that training runs in, as accelerate names it: "bf16", "fp16" or "no"."""
        if self.value("fp16"):
            return "fp16"
        return "bf16" if self.value("bf16") is not False else "no"


def load_run_config(argv: list[str]) -> RunConfig:
    """Read `--config FILE` and the other flags.

    Raises:
        ValueError: the file cannot be read; or, with every problem found, one a line: unknown or repeated options,
            wrong types, refused options, required options that are missing.
        SystemExit: 0, after printing all options, if `--help` is among the flags.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(usage_name("train.sft")))
        raise SystemExit(0)
    problems: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given: list[tuple[str, Any]] = []
    for name, value, origin in _given(argv, problems):
        given.append((name, value))
        try:
            option = _find(name)
            values[name] = _from_flag(option, value) if isinstance(value, _Flag) else convert(option, value)
            origins[name] = origin
        except ValueError as error:
            problems.append(f"{origin}: {error}")
    problems += _check(values, origins)
    if problems:
        lines = "\n".join(f"  - {hide(problem, given)}" for problem in problems)
        raise ValueError(f"the run configuration cannot be used:\n{lines}")
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
    others = {name: value for name, value in values.items() if name not in REFUSALS}
    refused = [*refused_values(values), *refused_secrets(others), *values_out_of_range(values)]
    for name, reason in [*refused, *refused_combinations(sft, model)]:
        yield f"{origins.get(name, name)}: {reason}"
    for name, meaning in REQUIRED.items():
        if not values.get(name):
            yield f"{name}: missing: give {meaning}, in the file or as --{name}"
    yield from (f"{origins.get(name, name)}: {problem}" for name, problem in _check_own(values))


def _check_own(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(option, what is wrong) among our own options."""
    if values.get("spike_sigma") is not None:
        if values.get("on_bad_step") == "ignore":
            yield "spike_sigma", "does nothing with on_bad_step: ignore: write stop or skip, or leave it out"
        if values.get("fp16"):
            yield "spike_sigma", "is refused with fp16: a skipped step would lower the loss scale: write bf16"
    if values.get("early_stopping_patience") is not None and not values.get("metric_for_best_model"):
        yield "early_stopping_patience", "expects metric_for_best_model: name what is to improve, such as eval_loss"
    yield from refused_with_parts(values)
    yield from (("hang_seconds", problem) for problem in _check_hang_seconds(values))


def _check_hang_seconds(values: dict[str, Any]) -> Iterator[str]:
    timeout = values.get("ddp_timeout", sft_options()["ddp_timeout"].default)
    for phase, seconds in (values.get("hang_seconds") or {}).items():
        if phase not in HANG_PHASES:
            yield f"expected some of {', '.join(HANG_PHASES)}, found {phase!r}: leave it out"
        elif isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            yield f"{phase}: expected a number of seconds above 0, found {seconds!r}"
        elif seconds > timeout:
            yield f"{phase}: expected at most ddp_timeout ({timeout}), found {seconds}: give a longer ddp_timeout too"


def _assemble(values: dict[str, Any]) -> RunConfig:
    return RunConfig(
        own=OwnOptions(**{name: value for name, value in values.items() if name in own_options()}),
        sft={name: value for name, value in values.items() if name in sft_options()},
        model={name: value for name, value in values.items() if name in model_options()},
    )


def build_sft_config(config: RunConfig) -> SFTConfig:
    """trl's SFTConfig with what packed rows need. Imports torch; `accelerate launch`ed, it starts the process group.

    Raises:
        ValueError: the world joined is not the launcher's, or the libraries refuse the options.
    """
    from trl import SFTConfig

    defaults = {**OWN_DEFAULTS, "data_seed": config.value("seed"), "disable_tqdm": not sys.stderr.isatty()}
    if str(config.value("metric_for_best_model")).endswith("loss_change"):
        defaults["greater_is_better"] = False  # the library assumes that only for names that end with "loss"
    if config.own.early_stopping_patience is not None:
        defaults["restore_callback_states_from_checkpoint"] = True  # its count of evaluations without improvement
    options = {**defaults, **_by_new_names(config.sft), **PACKED_ROWS, "eval_on_start": config.eval_on_start}
    args = SFTConfig(**options)
    if args.torch_compile:
        compile_layers_by_default()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != launched:  # DeepSpeed without a GPU: every process would train alone and exit with 0
        raise ValueError(
            f"the launcher started a world of {launched} process(es), this process joined one of {args.world_size}: no "
            "GPU was found; to train on the CPU write use_cpu: true in the run config"
        )
    if args.device.type == "cpu" and not args.use_cpu:
        raise ValueError(
            "no GPU was found, and use_cpu is not given: the run would take the CPU, a thousand times slower. Look at "
            "nvidia-smi and CUDA_VISIBLE_DEVICES; to train on the CPU write use_cpu: true in the run config"
        )
    return args


def _by_new_names(sft: dict[str, Any]) -> dict[str, Any]:
    """`activation_checkpointing` for `gradient_checkpointing`, where transformers has it.

    It warns of the old name, also where TRL's default gives it.
    """
    renamed = {**sft}
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if new in sft_options() and sft.get(new) is None:
            value = renamed.pop(old, sft_options()[old].default)
            renamed |= {new: value, old: None}
    return renamed


def build_model_config(config: RunConfig) -> ModelConfig:
    """trl's ModelConfig. Imports torch."""
    from trl import ModelConfig

    model_config = ModelConfig(**config.model)
    asked = config.model.get("lora_target_modules")
    if isinstance(asked, list) and asked != ["all-linear"]:
        model_config.lora_target_modules = asked  # TRL makes one name a string, which peft reads as a pattern
    return model_config
