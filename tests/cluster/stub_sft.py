"""Stands in for train.sft where only the launch is tested: the same flags and files, seconds instead of minutes.

It joins the world, says who it is, counts steps of 0.05 s and treats signals as train.sft does: all ranks agree at the
end of a step, save, write preempted.json and exit with 0. STUB, a JSON object in the environment, says how many steps,
and what goes wrong.
"""

import argparse
import datetime
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
patience = datetime.timedelta(seconds=stub.get("patience", 60))

import torch  # noqa: E402  # a signal that comes now is ignored: there is no handler yet
import torch.distributed as dist  # noqa: E402

signalled = False


def on_signal(*_) -> None:
    global signalled
    signalled = True


signal.signal(signal.SIGUSR1, on_signal)
signal.signal(signal.SIGTERM, on_signal)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=300))
rank, world_size = dist.get_rank(), dist.get_world_size()
assert world_size == arguments.expected_world_size, f"world of {world_size}, not {arguments.expected_world_size}"
who = {
    "world_size": world_size,
    "host": socket.gethostname(),
    "node_id": os.environ["SLURM_NODEID"],
    "threads": os.environ["OMP_NUM_THREADS"],
    "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
    "port": os.environ["MASTER_PORT"],
    "deepspeed": os.environ.get("ACCELERATE_USE_DEEPSPEED"),
    "offline": os.environ.get("HF_HUB_OFFLINE"),
}
(output_dir / f"rank{rank}.json").write_text(json.dumps(who))
print(f"rank {rank} of {world_size} on {who['host']}", flush=True)

saved = output_dir / "step.txt"
step = int(saved.read_text()) if saved.exists() else 0
dist.barrier()  # all have read it
while step < stub["steps"]:
    time.sleep(0.05)
    step += 1
    if rank == stub.get("failing_rank") and step == 3:
        raise RuntimeError(f"rank {rank} fails as it was told")
    stop = torch.tensor([int(signalled)])
    dist.all_reduce(stop, op=dist.ReduceOp.MAX, async_op=True).wait(patience)
    if rank == 0:
        with (output_dir / "steps.log").open("a") as log:
            log.write(f"{step}\n")
        if stop.item():
            saved.write_text(str(step))
            (output_dir / "preempted.json").write_text(json.dumps({"step": step, "time": time.time()}))
    if stop.item():
        break
else:
    if rank == 0:
        (output_dir / "complete.json").write_text("{}")
dist.barrier()
dist.destroy_process_group()
