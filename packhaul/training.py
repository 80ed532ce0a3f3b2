"""`packhaul train`: one process, or with `--launch NAME` the processes of a launch file of configs/accelerate.

    packhaul train --config configs/train/X.yaml [--option value]
    packhaul train --launch zero3 [--num_processes N] --config configs/train/X.yaml [--option value]

The first is `python -m train.sft`, the second `python -m train.launch`. All other flags are the run's.
"""

from __future__ import annotations

import difflib
import os
from contextlib import ExitStack
from pathlib import Path

from data_prep.program_name import PROGRAM, STARTED_AS, refusal, usage_name

LAUNCH_FILES = Path("configs/accelerate")
_SELF = "packhaul.training"
_OWN = """Flags of the launch
  --launch NAME
        start the processes of configs/accelerate/NAME.yaml, or of a launch file by its path; without it: one process
  --num_processes N
        with --launch: how many; without it as many as this machine has GPUs, on CPUs those of the file
"""


def main(argv: list[str]) -> int:
    """The exit code of the training."""
    if "--help" in argv or "-h" in argv:
        from train.config.option_help import help_text

        print(help_text(usage_name("train.sft"), _OWN))
        return 0
    try:
        launch, number, rest = split_flags(argv)
        if launch is None:
            return _in_this_process(rest)
        words = launch_words(launch, number)
    except ValueError as error:
        raise refusal(_SELF, error) from None
    from train.launch import main as start

    os.environ[STARTED_AS] = f"{PROGRAM} train"
    return start([*words, "-m", "train.sft", *rest])


def _in_this_process(argv: list[str]) -> int:
    """As `python -m train.sft` does it."""
    from train.run import ending
    from train.sft import main as train

    until_the_end = ExitStack()
    ending.end_here(until_the_end)
    return train(argv, own_process=True, held=until_the_end)


def split_flags(argv: list[str]) -> tuple[str | None, int | None, list[str]]:
    """The launch file's name, the number of processes, and the run's own flags.

    Raises:
        ValueError: one of the two is given twice or without a value, is no number, or does nothing.
    """
    own: dict[str, str] = {}
    rest, words = [], list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in ("launch", "num_processes"):
            rest.append(word)
            continue
        if name in own:
            raise ValueError(f"--{name}: given twice: keep one")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else ""
        if not value:
            raise ValueError(f"--{name}: expected a value after it, found none")
        own[name] = value
    return own.get("launch"), _number(own), rest


def _number(own: dict[str, str]) -> int | None:
    text = own.get("num_processes")
    if text is None:
        return None
    if "launch" not in own:
        raise ValueError("--num_processes does nothing without --launch: name a launch file, or leave it out")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--num_processes: expected a whole number of 1 or more, found {text!r}")
    return int(text)


def launch_words(name: str, number: int | None) -> list[str]:
    """The flags of the launcher.

    Raises:
        ValueError: there is no such launch file, it is for several machines, or this machine has no GPU for it.
    """
    from train.checks.launch import launch_from_file

    path = launch_file(name)
    launch = launch_from_file(path)
    if path.stem.endswith("_multinode"):
        raise ValueError(
            f"{path} is for several machines, each with a launcher of its own: submit the run with `packhaul submit "
            "train`, or start python -m train.launch on each machine with the flags that the file names"
        )
    words = ["--config_file", str(path)]
    if number is None and launch.distributed_type != "NO" and not launch.settings.get("use_cpu"):
        number = _gpus_for(path)
    return [*words, "--num_processes", str(number)] if number is not None else words


def launch_file(name: str) -> Path:
    """Of a name in configs/accelerate, or of a path.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    if not LAUNCH_FILES.is_dir():
        raise ValueError(
            f"--launch {name}: there is no folder {LAUNCH_FILES} in {Path.cwd()}: start in the repository's root "
            "(launch files name their DeepSpeed file from there), or give the path of a launch file of your own"
        )
    found = {path.stem: path for path in sorted(LAUNCH_FILES.glob("*.yaml"))}
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, list(found), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"--launch {name}: no such launch file; {hint}There are: {', '.join(found)}")


def _gpus_for(path: Path) -> int:
    if number := count_gpus():
        return number
    raise ValueError(
        f"{path} is for GPUs, and none was found here: give --num_processes N, or take a cpu_* launch file"
    )


def count_gpus() -> int:
    """How many GPUs this process may use, by the driver's own tool: CUDA is not initialised here.

    Raises:
        ValueError: the tool fails, or does not answer.
    """
    from train.node_check import amd, nvidia

    for tool, variable in ((nvidia, "CUDA_VISIBLE_DEVICES"), (amd, "HIP_VISIBLE_DEVICES")):
        try:
            listed = tool.list_gpus()
        except FileNotFoundError:
            continue
        except (nvidia.Hangs, ValueError) as error:
            raise ValueError(f"{error}: give --num_processes N") from None
        return len(nvidia.chosen(listed, os.environ.get(variable)))
    return 0
