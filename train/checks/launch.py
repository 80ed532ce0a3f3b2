"""The launch configuration: read from a file or the environment, and compared with the run configuration.

What is known before the start comes from the accelerate YAML; inside `accelerate launch`, from the environment that it
hands to each process. Both are brought to the form of the YAML, so that the same checks serve both. Nothing here
imports torch.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.strict_files import read_json, read_yaml
from train.checks.deepspeed_file import check_deepspeed
from train.checks.parallel_sizes import PREFIX, check_parallelism, sizes_from
from train.config.library_options import package_folder, parse_source
from train.config.run_config import RunConfig

# Keys of an accelerate YAML that accelerate refuses, or ignores, when a DeepSpeed file holds the same setting.
_OWNED_BY_DEEPSPEED_FILE = frozenset(
    {
        "gradient_accumulation_steps",
        "gradient_clipping",
        "zero_stage",
        "offload_optimizer_device",
        "offload_param_device",
        "offload_param_nvme_path",
        "offload_optimizer_nvme_path",
        "zero3_save_16bit_model",
        "mixed_precision",
    }
)


_REFUSED_OF_FSDP = {
    "fsdp_activation_checkpointing": "it recomputes with other random numbers, so dropout gives wrong gradients; write "
    "gradient_checkpointing: true in the run config",
    "fsdp_offload_params": "it is not compared with a reference here; zero3_offload.yaml is",
}


_STEP_ON_SHARDS = ("adamw_torch", "adamw_torch_fused", "rmsprop", "sgd")  # and are saved; adagrad cannot be


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch configuration in the form of an accelerate YAML."""

    origin: str  # for messages
    settings: Mapping[str, Any]

    @property
    def distributed_type(self) -> str:
        """As written, such as "NO" or "DEEPSPEED"."""
        value = self.settings.get("distributed_type", "NO")
        return "NO" if value is False else str(value)  # YAML reads a bare NO as false

    @property
    def num_processes(self) -> int | None:
        """Processes over all machines, or None where a flag gives them."""
        default = 1 if self.distributed_type == "NO" else None
        return self.settings.get("num_processes", default)

    @property
    def deepspeed(self) -> Mapping[str, Any]:
        """The accelerate YAML's own section about DeepSpeed."""
        return self.settings.get("deepspeed_config") or {}

    @property
    def parallelism(self) -> Mapping[str, Any]:
        """The accelerate YAML's own section about further ways to cut a model, by name without its prefix."""
        section = self.settings.get("parallelism_config") or {}
        return {str(key).removeprefix(PREFIX): value for key, value in section.items()}

    @property
    def deepspeed_file(self) -> str | None:
        """The DeepSpeed JSON that it names."""
        return self.deepspeed.get("deepspeed_config_file")

    def deepspeed_settings(self) -> dict[str, Any]:
        """The DeepSpeed file's contents, or what accelerate makes of the YAML's own section.

        Raises:
            ValueError: the file is missing or not usable.
        """
        if self.deepspeed_file:
            return read_json(self.deepspeed_file)
        own = self.deepspeed
        zero = {
            "stage": int(own.get("zero_stage", 2)),
            "offload_optimizer": {"device": own.get("offload_optimizer_device", "none")},
            "stage3_gather_16bit_weights_on_model_save": own.get("zero3_save_16bit_model", False),
        }
        settings = {key: own.get(key, "auto") for key in ("gradient_accumulation_steps", "gradient_clipping")}
        batches = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
        return {"zero_optimization": zero, **settings, **batches}


def launch_from_file(path: str | Path) -> Launch:
    """Read an accelerate YAML.

    Raises:
        ValueError: missing, not YAML, a key twice, a key that accelerate does not know, or no distributed_type.
    """
    settings, _ = read_yaml(path)
    if "distributed_type" not in settings:
        raise ValueError(
            f"{path}: expected distributed_type, such as DEEPSPEED, found none: accelerate refuses the file"
        )
    unknown = set(settings) - _known_keys()
    unknown |= set(settings.get("deepspeed_config") or {}) - _known_deepspeed_keys()
    if unknown:
        raise ValueError(f"{path}: unknown to accelerate: {', '.join(sorted(unknown))}: remove or correct them")
    return Launch(origin=str(path), settings=settings)


@functools.cache
def _known_keys() -> frozenset[str]:
    file = package_folder("accelerate") / "commands" / "config" / "config_args.py"
    classes = [s for s in parse_source(file).body if isinstance(s, ast.ClassDef)]
    fields = [s for c in classes if c.name in ("BaseConfig", "ClusterConfig") for s in c.body]
    return frozenset(f.target.id for f in fields if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name))


@functools.cache
def _known_deepspeed_keys() -> frozenset[str]:
    """The flags of `accelerate launch`: it silently drops a key of this section that is not one of them."""
    names: set[str] = set()
    for node in ast.walk(parse_source(package_folder("accelerate") / "commands" / "launch.py")):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
            texts = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            names |= {text.removeprefix("--") for text in texts if text.startswith("--")}
    return frozenset(names)


def launch_from_environment(environ: Mapping[str, str] | None = None) -> Launch | None:
    """What `accelerate launch` handed to this process, or in `environ`; None if it did not start it."""
    environ = _environment(environ)
    if "ACCELERATE_MIXED_PRECISION" not in environ:
        return None
    settings: dict[str, Any] = {"num_processes": int(environ.get("WORLD_SIZE", "1"))}
    if environ["ACCELERATE_MIXED_PRECISION"] != "no":
        settings["mixed_precision"] = environ["ACCELERATE_MIXED_PRECISION"]
    if _is_true(environ.get("ACCELERATE_USE_DEEPSPEED")):
        settings |= {"distributed_type": "DEEPSPEED", "deepspeed_config": _deepspeed_from(environ)}
    elif _is_true(environ.get("ACCELERATE_USE_FSDP")):
        keys = ("fsdp_version", "fsdp_state_dict_type", *_REFUSED_OF_FSDP)
        names = {key: key.upper() for key in keys}
        found = {key: _number(environ[name]) for key, name in names.items() if name in environ}
        settings |= {"distributed_type": "FSDP", "fsdp_config": found}
    else:
        settings["distributed_type"] = "MULTI_GPU" if settings["num_processes"] > 1 else "NO"
    if "ACCELERATE_USE_CPU" in environ:
        settings["use_cpu"] = _is_true(environ["ACCELERATE_USE_CPU"])
    settings["parallelism_config"] = sizes_from(environ)
    return Launch(origin="the environment that accelerate launch made", settings=settings)


def _deepspeed_from(environ: Mapping[str, str]) -> dict[str, Any]:
    prefix = "ACCELERATE_DEEPSPEED_"
    names = {
        "deepspeed_config_file": f"{prefix}CONFIG_FILE",
        "zero_stage": f"{prefix}ZERO_STAGE",
        "offload_optimizer_device": f"{prefix}OFFLOAD_OPTIMIZER_DEVICE",
        "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    }
    found: dict[str, Any] = {key: _number(environ[name]) for key, name in names.items() if name in environ}
    for key, name in (("zero3_init_flag", "ZERO3_INIT"), ("zero3_save_16bit_model", "ZERO3_SAVE_16BIT_MODEL")):
        if f"{prefix}{name}" in environ:
            found[key] = _is_true(environ[f"{prefix}{name}"])
    return found


def _number(text: str) -> Any:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _environment(given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Looked up at the call: `datasets.map` with processes puts another object in the place of `os.environ`."""
    return os.environ if given is None else given


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes", "on", "y", "t")


def check_launch(launch: Launch, world_size: int | None, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """What is wrong with a launch configuration in itself, or with `environ` (default: this process's) beside it."""
    yield from _check_processes(launch)
    yield from _check_fsdp(launch)
    yield from _check_deepspeed_section(launch, _environment(environ))
    processes = launch.num_processes if world_size is None else world_size
    yield from check_parallelism(launch.parallelism, launch.origin, launch.distributed_type, processes)
    if world_size is not None and launch.distributed_type == "NO" and world_size > 1:
        yield f"{launch.origin}: distributed_type NO starts 1 process, {world_size} are asked for: use a DEEPSPEED file"


def _check_processes(launch: Launch) -> Iterator[str]:
    kind, planned, origin = launch.distributed_type, launch.num_processes, launch.origin
    if kind == "MULTI_CPU" or (kind == "NO" and planned not in (None, 1)):
        yield (
            f"{origin}: distributed_type {kind} starts one process, so the {planned} asked for would not be one world, "
            "and the run would still end with exit code 0: use DEEPSPEED (on CPU with use_cpu: true)"
        )
    if kind == "FSDP" and launch.settings.get("use_cpu"):
        yield f"{origin}: expected a GPU for FSDP, found use_cpu: true: it would silently be plain DDP; use DEEPSPEED"
    machines = launch.settings.get("num_machines", 1)
    launcher = launch.deepspeed.get("deepspeed_multinode_launcher")
    if kind == "DEEPSPEED" and machines > 1 and launcher != "standard":
        yield (
            f"{origin}: expected deepspeed_multinode_launcher: standard for {machines} machines, found {launcher}: "
            "others start an independent run on each machine, or need ssh between them"
        )


def _check_fsdp(launch: Launch) -> Iterator[str]:
    settings = launch.settings.get("fsdp_config") or {}
    if launch.distributed_type != "FSDP":
        return
    if str(settings.get("fsdp_version")) != "2":
        yield f"{launch.origin}: expected fsdp_version: 2, found {settings.get('fsdp_version', 1)}: 1 is not supported"
    kind = str(settings.get("fsdp_state_dict_type") or "SHARDED_STATE_DICT")
    if kind.upper() not in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
        yield f"{launch.origin}: expected fsdp_state_dict_type SHARDED_STATE_DICT or FULL_STATE_DICT, found {kind}"
    for key, reason in _REFUSED_OF_FSDP.items():
        if _is_true(str(settings.get(key))):
            yield f"{launch.origin}: {key}: true is refused: {reason}"


def _check_deepspeed_section(launch: Launch, environ: Mapping[str, str]) -> Iterator[str]:
    if launch.distributed_type != "DEEPSPEED":
        return
    if _is_true(environ.get("ACCELERATE_USE_CPU")):
        yield (
            "ACCELERATE_USE_CPU is set: it silently turns DeepSpeed into plain data parallelism: unset it, and write "
            "use_cpu: true in both the accelerate YAML and the run config"
        )
    if launch.deepspeed_file is None:
        return
    twice = _OWNED_BY_DEEPSPEED_FILE & (set(launch.deepspeed) | set(launch.settings))
    if twice:
        yield (
            f"{launch.origin}: {', '.join(sorted(twice))} next to deepspeed_config_file, which accelerate refuses: "
            f"remove them here; stage and offload belong in {launch.deepspeed_file}, precision in the run config"
        )


def check_launch_against(launch: Launch, config: RunConfig, world_size: int | None) -> Iterator[str]:
    """Where a launch configuration and the run configuration disagree."""
    origin, kind = launch.origin, launch.distributed_type
    processes = world_size if world_size is not None else launch.num_processes
    use_cpu, asked_cpu = launch.settings.get("use_cpu"), bool(config.value("use_cpu"))
    if use_cpu is not None and bool(use_cpu) != asked_cpu:
        yield f"{origin}: use_cpu is {bool(use_cpu)}, in the run config {asked_cpu}: write the same in both"
    if kind == "FSDP" and asked_cpu and not use_cpu:
        yield f"{origin}: expected a GPU for FSDP, the run config has use_cpu: true: it would silently be plain DDP"
    precision = launch.settings.get("mixed_precision") or "no"
    if precision == "fp8":
        yield (
            f"{origin}: mixed_precision fp8: bf16: true in the run config would silently replace it, and fp8 by itself "
            "is not proven to equal the reference: remove it and train in bf16"
        )
    elif kind != "DEEPSPEED" and precision not in ("no", config.precision):
        yield (
            f"{origin}: mixed_precision is {precision}, the run config says {config.precision}: remove it here; it "
            "belongs in the run config (bf16, fp16)"
        )
    actual = "MULTI_CPU" if kind == "MULTI_GPU" and asked_cpu else kind
    expected = config.own.expected_distributed_type
    if expected not in (None, actual):
        yield f"{origin}: expected_distributed_type is {expected}, this launch makes {actual}: use another launch file"
    if kind == "FSDP" and config.optim not in _STEP_ON_SHARDS:
        yield (
            f"{origin}: optim {config.optim} cannot step on weights that FSDP shards: the first step would fail. "
            f"Choose one of {', '.join(_STEP_ON_SHARDS)}, or a DEEPSPEED file"
        )
    if kind == "DEEPSPEED":
        yield from _check_deepspeed_file(launch, config, processes)


def _check_deepspeed_file(launch: Launch, config: RunConfig, processes: int | None) -> Iterator[str]:
    try:
        settings = launch.deepspeed_settings()
    except (ValueError, TypeError) as error:
        yield f"{launch.origin}: deepspeed_config_file: {error}"
        return
    origin = launch.deepspeed_file or launch.origin
    yield from check_deepspeed(
        settings, origin, launch.deepspeed.get("zero3_init_flag"), launch.origin, config, processes
    )
