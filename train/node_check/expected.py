"""What every node should have, from the variables of slurm/env.sh and of the job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

REQUIRED = ("SLURM_NODEID", "PACKHAUL_NODE_NAMES", "PACKHAUL_OUTPUT_DIR", "PACKHAUL_TOKEN", "PACKHAUL_GPUS_PER_NODE")
MEETING = ("PACKHAUL_MAIN_IP", "PACKHAUL_MAIN_PORT")  # of several nodes
LEAST_SPEED = 0.85  # of the median of the job's GPUs


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What every node should have."""

    gpus: int | None = 0  # None: as many as there are, and at least one
    processes: int = 1  # of the training, on each node
    min_free_gib: float = 0.0
    shared_dirs: tuple[str, ...] = ()
    token: str = ""  # a file that the first node has written into each of them
    data_dir: str = ""
    model_dir: str = ""
    interfaces: tuple[str, ...] = ()
    main_host: str = ""  # the name or address of the first node
    min_speed: float = LEAST_SPEED  # of a GPU, as a part of the median; 0: none
    min_all_reduce: float = 0.0  # GB/s; 0: none


def expected_of(environment: Mapping[str, str]) -> Expected:
    """What the job's variables ask for.

    Raises:
        ValueError: one is absent or malformed.
    """
    alone = len(environment.get("PACKHAUL_NODE_NAMES", "").split()) < 2
    if missing := [name for name in (*REQUIRED, *(() if alone else MEETING)) if name not in environment]:
        raise ValueError(
            f"{', '.join(missing)} not set: this runs in a step of a job, as slurm/train.sbatch starts it; --gpus-only "
            "looks at the GPUs of this machine alone"
        )
    gpus = int(_number(environment, "PACKHAUL_GPUS_PER_NODE", 0))
    return Expected(
        gpus=gpus,
        processes=int(_number(environment, "PACKHAUL_PROCS_PER_NODE", max(1, gpus))),
        min_free_gib=_number(environment, "PACKHAUL_MIN_FREE_GIB", 20),
        shared_dirs=(*_shared_dirs(environment), environment["PACKHAUL_OUTPUT_DIR"]),
        token=environment["PACKHAUL_TOKEN"],
        data_dir=environment.get("PACKHAUL_DATA_DIR", ""),
        model_dir=environment.get("PACKHAUL_MODEL_DIR", ""),
        interfaces=tuple(filter(None, environment.get("PACKHAUL_NETWORK_INTERFACE", "").split(","))),
        main_host=environment.get("PACKHAUL_MAIN_IP", ""),
        min_speed=least_speed(environment),
        min_all_reduce=_number(environment, "PACKHAUL_MIN_ALLREDUCE_GBPS", 0),
    )


def least_speed(environment: Mapping[str, str]) -> float:
    """Of a GPU, as a part of the median (PACKHAUL_MIN_GPU_SPEED)."""
    return _number(environment, "PACKHAUL_MIN_GPU_SPEED", LEAST_SPEED)


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "") or str(default)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number, found {text!r}: change it in slurm/env.sh") from None


def _shared_dirs(environment: Mapping[str, str]) -> list[str]:
    """A JSON list, whose names may hold blanks; without it, names by blanks."""
    text = environment.get("PACKHAUL_SHARED_DIRS_JSON", "")
    if not text:
        return environment.get("PACKHAUL_SHARED_DIRS", "").split()
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"PACKHAUL_SHARED_DIRS_JSON: expected a JSON list of folders, found {text!r}")
    return names
