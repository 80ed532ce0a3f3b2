"""Stands in for train.sft where only the launch is tested: the same flags and files, seconds instead of minutes.

It joins the world, says who it is, counts steps of 0.05 s and treats signals as train.sft does: all ranks agree at the
end of a step, save, write preempted.json and exit with 0. STUB, a JSON object in the environment, says how many steps,
and what goes wrong.
"""

import argparse
import json
import os
import signal
import socket
import time
from pathlib import Path

import yaml

parser = argparse.ArgumentParser()
parser.add_argument("--config", required=True)
parser.add_argument("--expected_world_size", type=int, required=True)
arguments = parser.parse_args()
output_dir = Path(yaml.safe_load(Path(arguments.config).read_text())["output_dir"])
stub = json.loads(os.environ["STUB"])
patience = stub.get("patience", 60)

# A signal that comes during these imports is ignored: there is no handler yet.
if os.environ.get("LIGHT_LAUNCH"):
    from train.socket_world import World
else:
    from train.gloo_world import World

signalled = False


def on_signal(*_) -> None:
    global signalled
    signalled = True


signal.signal(signal.SIGUSR1, on_signal)
signal.signal(signal.SIGTERM, on_signal)
world = World()
assert world.size == arguments.expected_world_size, f"world of {world.size}, not {arguments.expected_world_size}"
who = {
    "world_size": world.size,
    "host": socket.gethostname(),
    "node_id": os.environ["SLURM_NODEID"],
    "threads": os.environ["OMP_NUM_THREADS"],
    "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
    "port": os.environ["MASTER_PORT"],
    "deepspeed": os.environ.get("ACCELERATE_USE_DEEPSPEED"),
    "offline": os.environ.get("HF_HUB_OFFLINE"),
}
(output_dir / f"rank{world.rank}.json").write_text(json.dumps(who))
print(f"rank {world.rank} of {world.size} on {who['host']}", flush=True)

saved = output_dir / "step.txt"
step = int(saved.read_text()) if saved.exists() else 0
world.any(False, 300)  # all have read it
while step < stub["steps"]:
    time.sleep(0.05)
    step += 1
    if world.rank == stub.get("failing_rank") and step == 3:
        raise RuntimeError(f"rank {world.rank} fails as it was told")
    stop = world.any(signalled, patience)
    if world.rank == 0:
        with (output_dir / "steps.log").open("a") as log:
            log.write(f"{step}\n")
        if stop:
            saved.write_text(str(step))
            (output_dir / "preempted.json").write_text(json.dumps({"step": step, "time": time.time()}))
    if stop:
        break
else:
    if world.rank == 0:
        (output_dir / "complete.json").write_text("{}")
for number in (signal.SIGUSR1, signal.SIGTERM):  # else one that comes now would end the interpreter, which ends itself
    signal.signal(number, signal.SIG_IGN)
world.any(False, 300)
world.close()
