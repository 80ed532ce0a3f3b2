"""What a run is made with, for its record: the libraries, the device, and the command that started it. No secrets."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from data_prep import secret_texts

LIBRARIES = ("packhaul", "torch", "transformers", "trl", "accelerate", "deepspeed", "peft")
KERNELS = ("liger-kernel", "flash-attn")
_LAUNCHERS = {"accelerate", "torchrun", "deepspeed"}  # programs that start the processes of a run
_SECRET_FLAGS = ("token", "key", "secret", "password")  # what the names of such flags end with
_MOST_PARENTS = 3  # a launcher may have one process between itself and ours


def noted() -> dict[str, Any]:
    """environment and command, as a start's record has them."""
    return {"environment": described(), "command": command()}


def described() -> dict[str, Any]:
    """Versions by library (those that are installed), Python, and the device of this process."""
    versions = {name: found for name in (*LIBRARIES, *KERNELS) if (found := _version(name))}
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    launch = {"deepspeed_config_file": file} if file else {}
    return {"python": platform.python_version(), **versions, "machine": platform.platform(), **_device(), **launch}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": f"CPU ({os.cpu_count()} cores)"}
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    return {"device": torch.cuda.get_device_name(), "devices_per_node": torch.cuda.device_count(), "made_for": made_for}


def command() -> str:
    """What started this process, as a shell reads it: the submission of its job, its launcher, or itself."""
    words = _submitted() or next(filter(_launches, _parents()), None) or _own_words()
    return secret_texts.hide(shlex.join(hidden(words)))


def hidden(words: list[str]) -> list[str]:
    """The words without the values of flags whose name says that they are secret."""
    shown: list[str] = []
    secret = False
    for word in words:
        flag, equals, _ = word.partition("=")
        named = flag.startswith("--") and flag.lower().endswith(_SECRET_FLAGS)
        if secret and not flag.startswith("--"):
            shown.append(secret_texts.HIDDEN)
        else:
            shown.append(f"{flag}={secret_texts.HIDDEN}" if named and equals else word)
        secret = named and not equals
    return shown


def _own_words() -> list[str]:
    """Of this process; `-m MODULE` instead of the module's file."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    first = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return [*first, *sys.argv[1:]]


def _parents() -> list[list[str]]:
    """The words of the processes above this one, the nearest first; none where there is no /proc."""
    found, process = [], os.getppid()
    for _ in range(_MOST_PARENTS):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        found.append([word for word in words if word])
    return found


def _launches(words: list[str]) -> bool:
    """Whether it is a launcher of train.sft, not a shell whose script names one."""
    programs = {Path(word).name for word in words[:2]}  # an interpreter may come before
    return programs & _LAUNCHERS != set() or "train.launch" in words[:3] or _is_packhaul_train(words)


def _is_packhaul_train(words: list[str]) -> bool:
    return any(Path(word).name == "packhaul" and words[i + 1 : i + 2] == ["train"] for i, word in enumerate(words[:3]))


def _submitted() -> list[str] | None:
    """The words of the submission whose job this is."""
    folder = os.environ.get("PACKHAUL_SUBMISSION")
    if not folder:
        return None
    try:
        found = json.loads((Path(folder) / "submission.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [str(word) for word in found]
