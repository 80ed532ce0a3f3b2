"""What rocm-smi and the kernel say of AMD's GPUs: driver, memory in use, uncorrected memory errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

from train.node_check.bounded import run
from train.node_check.nvidia import Hangs, Listed

COMMAND = "rocm-smi"
ANSWER_SECONDS = 30
DEVICES = Path("/sys/bus/pci/devices")
_QUESTION = [COMMAND, "--showproductname", "--showuniqueid", "--showbus", "--showdriverversion"]
_QUESTION += ["--showmeminfo", "vram", "--showpids", "--json"]


def list_gpus() -> list[Listed]:
    """All GPUs that rocm-smi knows.

    Raises:
        FileNotFoundError: there is no rocm-smi.
        Hangs: it does not answer.
        ValueError: it fails; with what it says.
    """
    done = run(_QUESTION, ANSWER_SECONDS)
    if done.code is None:
        raise Hangs(f"rocm-smi does not answer within {ANSWER_SECONDS} s: the driver or a GPU hangs")
    try:
        cards = json.loads(done.out[done.out.index("{") :])  # warnings may stand before it
    except ValueError:
        raise ValueError(f"rocm-smi fails: {done.last_words}") from None
    system = cards.get("system", {})
    found = [_listed(card, str(system.get("Driver version", ""))) for name, card in cards.items() if name[:4] == "card"]
    holders = [_holder(key[3:], row) for key, row in system.items() if re.fullmatch(r"PID\d+", key)]
    for gpu in found:
        gpu.holders = holders  # of which GPU is not told
    return found


def _holder(pid: str, row: str) -> str:
    """Of a process's name, GPUs, bytes, and so on."""
    name, *numbers = (cell.strip() for cell in row.split(","))
    held = f": {int(numbers[1]) // 2**20} MiB" if len(numbers) > 1 and numbers[1].isdigit() else ""
    return f"{name} (process {pid}){held}"


def _listed(card: dict[str, str], driver: str) -> Listed:
    bus = card.get("PCI Bus", "").lower()
    used = card.get("VRAM Total Used Memory (B)", "")
    held = int(used) // 2**20 if used.isdigit() else None
    name = card.get("Card Series") or card.get("Card series") or card.get("Card SKU") or "AMD GPU"
    return Listed(card.get("Unique ID", ""), bus, name, driver, held, ecc=uncorrected_errors(bus))


def uncorrected_errors(bus: str) -> int | None:
    """Of all blocks of a GPU since the driver was loaded, as amdgpu counts them; None where it does not."""
    counts = [re.search(r"ue: (\d+)", file.read_text()) for file in (DEVICES / bus / "ras").glob("*_err_count")]
    return sum(int(count[1]) for count in counts if count) if counts else None
