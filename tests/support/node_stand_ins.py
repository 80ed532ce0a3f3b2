"""Commands that stand in for nvidia-smi, rocm-smi, dmesg, and for the processes that use a GPU.

They answer from a JSON file, without torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Of an H100 node with driver 580: each field as --format=csv,noheader,nounits prints it.
H100 = {
    "driver_version": "580.82.07", "memory.used": "1", "memory.total": "81559", "name": "NVIDIA H100 80GB HBM3",
    "ecc.errors.uncorrected.volatile.total": "0", "ecc.errors.uncorrected.aggregate.total": "0",
    "remapped_rows.pending": "No", "remapped_rows.failure": "No", "retired_pages.pending": "[N/A]",
    "gpu_recovery_action": "None",
    **{f"clocks_event_reasons.{name}": "Not Active"
       for name in ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")},
}  # fmt: skip
UPTIME = 300_000.0  # seconds
UUIDS = [f"GPU-0000000{i}-d268-c3f3-1b07-005d5ae1dc3f" for i in range(8)]
BUSES = [f"00000000:{0x1B + 16 * i:02X}:00.0" for i in range(8)]

_SMI = """
import json, sys, time
plan = json.load(open(PLAN))
time.sleep(plan.get("sleep", 0))
if "dies" in plan:
    print(plan["dies"])
    sys.exit(15)
if "-L" in sys.argv:
    print("\\n".join(plan["lines"]))
    sys.exit()
what, _, fields = next(a for a in sys.argv if a.startswith("--query-"))[len("--query-"):].partition("=")
rows = plan["apps"] if what == "compute-apps" else plan["gpus"]
fields = fields.split(",")
for field in fields:
    if field in plan["unknown"]:
        print(f'Field "{field}" is not a valid field to query.')
        sys.exit(2)
for row in rows:
    print(", ".join(row.get(field, "[N/A]") for field in fields))
"""
_CHILD = """
import json, sys, time
plan = json.load(open(PLAN))
answer = plan[sys.argv[1]]
if sys.argv[1] != "count":
    answer = answer[int(sys.argv[-1])]
if answer == "hang":
    time.sleep(600)
if isinstance(answer, str):
    print(answer, file=sys.stderr)
    sys.exit(1)
time.sleep(plan.get("seconds", 0))
print("a library says something first")
print(json.dumps(answer))
print("and something last")
"""


def command(folder: Path, name: str, source: str, plan: Any) -> Path:
    """A Python script that reads its plan from a file beside it."""
    file, script = folder / f"{name}.json", folder / name
    file.write_text(json.dumps(plan))
    script.write_text(f"#!{sys.executable} -IS\n{source.replace('PLAN', repr(str(file)))}")
    script.chmod(0o755)
    return script


class Machine:
    """A node with stand-ins first on PATH. Change `smi`, `child`, `log`, then call `write`."""

    def __init__(self, folder: Path, gpus: int = 2) -> None:
        self.folder = folder
        rows = [{**H100, "index": str(i), "uuid": UUIDS[i], "gpu_uuid": UUIDS[i], "pci.bus_id": BUSES[i]}
                for i in range(gpus)]  # fmt: skip
        lines = [f"GPU {i}: {H100['name']} (UUID: {UUIDS[i]})" for i in range(gpus)]
        self.smi: dict[str, Any] | None = {"gpus": rows, "apps": [], "lines": lines, "unknown": []}
        devices = [{"name": row["name"], "uuid": row["uuid"][4:], "bus": BUSES[i][4:].lower(), "memory_mib": 81000}
                   for i, row in enumerate(rows)]  # fmt: skip
        speeds = [{"tflops": 700.0, "copy_gbs": 2900.0, "held_mib": 600, "wrong": []} for _ in rows]
        sums = [{"mib": 256, "seconds": 0.002, "gbs": 250.0, "backend": "nccl", "right": True} for _ in rows]
        self.child: dict[str, Any] = {"count": {"devices": devices, "hip": False, "cuda": "13.0"}}
        self.child |= {"speed": speeds, "add_up": sums}
        self.log: list[tuple[float, str]] = []  # seconds ago, text

    def write(self, monkeypatch: Any) -> Machine:
        """Make it so."""
        from train.node_check import adding_up, gpus, kernel_log

        if self.smi is not None:
            command(self.folder, "nvidia-smi", _SMI, self.smi)
        lines = [f"[{UPTIME - ago:12.6f}] {text}" for ago, text in self.log]
        command(self.folder, "dmesg", "import json; print('\\n'.join(json.load(open(PLAN))))", lines)
        child = command(self.folder, "gpu_process", _CHILD, self.child)
        monkeypatch.setattr(kernel_log, "uptime", lambda: UPTIME)
        monkeypatch.setattr(gpus, "CHILD", [str(child)])
        monkeypatch.setattr(adding_up, "CHILD", [str(child)])
        monkeypatch.setenv("PATH", f"{self.folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return self
