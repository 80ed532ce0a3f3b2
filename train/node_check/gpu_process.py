"""The part of the check that uses a GPU, in a process of its own, as a broken GPU may never answer.

    python -m train.node_check.gpu_process count
    python -m train.node_check.gpu_process speed INDEX
    python -m train.node_check.gpu_process add_up RANK WORLD_SIZE HOST PORT INDEX

Its last line is its result as JSON. `count` lists what torch sees, `speed` times one GPU, `add_up` is one process of a
sum over all GPUs of the job.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

MATMUL_SECONDS = 2.5  # under load: long enough for a clock to fall, and for the driver to be asked meanwhile
SUM_SECONDS = 120  # for a sum over all processes
_REPEATS = 5


def main(argv: list[str]) -> int:
    """0, or an exception, whose last line is the reason."""
    command, numbers = argv[0], argv[1:]
    if command == "count":
        result = count()
    elif command == "speed":
        result = speed(Device(int(numbers[0])))
    else:
        rank, world_size, host, port, index = numbers
        result = add_up_apart(int(rank), int(world_size), host, int(port), int(index))
    print(json.dumps(result), flush=True)
    return 0


def count() -> dict[str, Any]:
    """What torch sees: `devices` with name, uuid, bus, memory_mib; torch's build; why there is none."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [_described(torch.cuda.get_device_properties(index)) for index in range(there)]
    build = torch.version.hip or torch.version.cuda
    return {"devices": devices, "hip": bool(torch.version.hip), "cuda": build or ""}


def _described(properties: Any) -> dict[str, Any]:
    numbers = [getattr(properties, f"pci_{part}_id", -1) for part in ("domain", "bus", "device")]
    bus = "" if -1 in numbers else "{:04x}:{:02x}:{:02x}.0".format(*map(int, numbers))
    uuid, memory = str(getattr(properties, "uuid", "")), properties.total_memory // 2**20
    return {"name": properties.name, "uuid": uuid, "bus": bus, "memory_mib": memory}


class Device:
    """A GPU of this process, timed by its own clock."""

    def __init__(self, index: int) -> None:
        import torch

        self.torch, self.name = torch, torch.device("cuda", index)
        torch.cuda.set_device(index)
        self.repeatable = not torch.version.hip  # cuBLAS promises equal bits, hipBLASLt does not
        free, total = torch.cuda.mem_get_info(index)
        self.free, self.held_mib = free, (total - free) // 2**20

    @property
    def edge(self) -> int:
        """Rows of the square matrices, three of which fit."""
        return 8192 if self.free > 2 * 2**30 else 2048

    @property
    def dtype(self) -> Any:
        """What its tensor cores multiply."""
        newer = self.torch.version.hip or self.torch.cuda.get_device_capability(self.name) >= (8, 0)
        return self.torch.bfloat16 if newer else self.torch.float16

    def seconds(self, work: Callable[[], Any], times: int) -> float:
        """Of `times` calls in a row."""
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000


def speed(device: Any) -> dict[str, Any]:
    """`tflops` of a matrix product, `copy_gbs` of a copy within the memory, `held_mib` by others, `wrong`: what it
    computes or copies wrongly."""
    tflops, same = _matmul(device)
    copy_gbs, copied = _copy(device)
    wrong = [what for what, right in (("a matrix product", same), ("a copy in its memory", copied)) if not right]
    return {"tflops": tflops, "copy_gbs": copy_gbs, "held_mib": device.held_mib, "wrong": wrong}


def _matmul(device: Any) -> tuple[float, bool]:
    """TFLOP/s, and whether the same product was the same at the end."""
    edge = device.edge
    a, b = (device.torch.randn(edge, edge, device=device.name, dtype=device.dtype) for _ in range(2))
    first, out = a @ b, a @ b
    device.seconds(lambda: device.torch.mm(a, b, out=out), 5)  # warm
    one = device.seconds(lambda: device.torch.mm(a, b, out=out), 5) / 5
    times = max(5, min(20_000, round(MATMUL_SECONDS / max(one, 1e-6))))
    seconds = device.seconds(lambda: device.torch.mm(a, b, out=out), times)
    same = not device.repeatable or bool(device.torch.equal(first, out))
    return round(2 * edge**3 * times / max(seconds, 1e-9) / 1e12, 4), same


def _copy(device: Any) -> tuple[float, bool]:
    """GB/s read and written, and whether all bytes arrived."""
    torch, size = device.torch, min(2**30, device.free // 8)
    source = torch.randint(0, 256, (size,), device=device.name, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = statistics.median(device.seconds(lambda: target.copy_(source), 10) / 10 for _ in range(5))
    return round(2 * size / max(seconds, 1e-9) / 1e9, 2), bool(torch.equal(source, target))


def add_up_apart(rank: int, world_size: int, host: str, port: int, index: int) -> dict[str, Any]:
    """`add_up` on a GPU of this process, over the store of the first node."""
    from torch.distributed import TCPStore

    store = TCPStore(host, port, None, False, timedelta(seconds=SUM_SECONDS))
    return add_up(store, rank, world_size, device_of(index))


def device_of(index: int) -> Any:
    """The torch.device of a GPU, which becomes this process's own."""
    import torch

    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def add_up(store: Any, rank: int, world_size: int, device: Any) -> dict[str, Any]:
    """Sum a tensor over all processes.

    Args:
        store: a torch.distributed store that all processes know.

    Returns:
        `mib`: the tensor's size; `seconds`: the median of a sum; `gbs`: GB/s on the bus, 2 (n - 1) / n of the tensor
        in that time, as nccl-tests count; `backend`; `right`: whether every sum was right.
    """
    import torch
    import torch.distributed as dist

    on_gpu = device.type == "cuda"
    backend, timeout = "nccl" if on_gpu else "gloo", timedelta(seconds=SUM_SECONDS)
    shared = dist.PrefixStore("add_up", store)
    dist.init_process_group(backend, store=shared, rank=rank, world_size=world_size, timeout=timeout)
    tensor = torch.empty(2**26 if on_gpu else 4_000_000, device=device)  # 256 MiB; as much as a bucket of gradients
    right, seconds = True, []
    for _ in range(1 + _REPEATS):  # the first one makes the connections
        tensor.fill_(rank + 1)
        began = time.monotonic()
        dist.all_reduce(tensor)
        tensor[0].item()  # waits for the device
        seconds.append(time.monotonic() - began)
        right = bool((tensor == world_size * (world_size + 1) / 2).all()) and right
    dist.barrier()
    dist.destroy_process_group()
    median = statistics.median(seconds[1:])
    gbs = 2 * (world_size - 1) / world_size * tensor.nbytes / max(median, 1e-9) / 1e9
    return {"mib": tensor.nbytes // 2**20, "seconds": median, "gbs": gbs, "backend": backend, "right": right}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
