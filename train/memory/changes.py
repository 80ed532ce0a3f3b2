"""Settings that need less memory for the same rows a step, and the lines that make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from train.memory.fit import Fit
from train.memory.setting import Setting, Sharding

_AUTO = {"reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
_STAGE_3 = {"stage": 3, "overlap_comm": True, "stage3_param_persistence_threshold": "auto", **_AUTO}
_ON_HOST = {"device": "cpu"}
# What the files of configs/deepspeed with these names say of memory; a test compares the two.
ZERO: dict[str, dict[str, object]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2, "overlap_comm": True},
    "zero3": _STAGE_3,
    "zero2_offload": {"stage": 2, "overlap_comm": True, "offload_optimizer": _ON_HOST},
    "zero3_offload": {**_STAGE_3, "offload_optimizer": _ON_HOST, "offload_param": _ON_HOST},
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """Another setting."""

    setting: Setting
    launch: str | None = None  # name of a file in configs/accelerate; None: as it is

    def lines(self, before: Setting) -> Iterator[str]:
        """What to write in the run config, and which launch file to use."""
        names = {
            "per_device_train_batch_size": "rows",
            "gradient_accumulation_steps": "accumulation",
            "gradient_checkpointing": "checkpointing",
            "bf16_copies": "copies",
        }
        for option, name in names.items():
            value = getattr(self.setting, name)
            if value != getattr(before, name):
                yield f"{option}: {str(value).lower()}"
        if self.launch:
            yield f"--accelerate_config configs/accelerate/{self.launch}.yaml"


def cheapest(fit: Fit) -> Change | None:
    """The first change that fits, from the cheapest in time to the dearest; None if none does.

    Smaller micro-batches cost little. Checkpointing computes each layer twice, about a third more work. More sharding
    sends more; weights and states in the host's memory have to come from there.
    """
    return _first(fit, [*_without_sharding(fit.setting), *_sharded(fit.setting, more_only=True)])


def suggestion(fit: Fit) -> Change | None:
    """Of all ways to train on these processes, the first that fits, in the same order; None if none does."""
    processes, setting = fit.setting.sharding.processes, fit.setting
    plain = Change(setting=dataclasses.replace(setting, checkpointing=False))
    ways: list[Change] = []
    for checkpointing in (False, True):
        base = dataclasses.replace(setting, checkpointing=checkpointing)
        if processes == 1:
            ways.append(Change(setting=dataclasses.replace(base, sharding=Sharding(kind="none")), launch="single_gpu"))
        ways += [way for way in _sharded(base, more_only=False) if not way.setting.sharding.offload("optimizer")]
    lean = dataclasses.replace(plain.setting, checkpointing=True)
    ways += [way for way in _sharded(lean, more_only=False) if way.setting.sharding.offload("optimizer")]
    return _first(fit, ways)


def _first(fit: Fit, ways: list[Change]) -> Change | None:
    """With the largest micro-batch that keeps the rows of a step."""
    for way in ways:
        rows = fit.rows_that_divide(way.setting)
        accumulation = way.setting.rows * way.setting.accumulation // rows
        setting = dataclasses.replace(way.setting, rows=rows, accumulation=accumulation)
        if fit.fits(setting):
            return Change(setting=setting, launch=way.launch)
    return None


def _without_sharding(setting: Setting) -> Iterator[Change]:
    yield Change(setting=setting)
    if not setting.checkpointing:
        yield Change(setting=dataclasses.replace(setting, checkpointing=True))


def _sharded(setting: Setting, *, more_only: bool) -> Iterator[Change]:
    """With DeepSpeed's stages and offload, in the order of what they cost.

    Args:
        more_only: only those that shard or offload more than the setting does; with checkpointing.
    """
    processes = setting.sharding.processes
    for name, zero in ZERO.items() if setting.on_gpu else ():
        sharding = Sharding(kind="zero", processes=processes, zero=zero)
        alone = processes == 1 and not sharding.offload("optimizer")
        if alone or (more_only and _order(sharding) <= _order(setting.sharding)):
            continue
        checkpointing = setting.checkpointing or more_only
        changed = dataclasses.replace(setting, sharding=sharding, checkpointing=checkpointing, copies=False)
        yield Change(setting=changed, launch=name)


def _order(sharding: Sharding) -> int:
    stage = 3 if sharding.kind == "fsdp2" else sharding.stage
    return stage + 3 * bool(sharding.offload("optimizer"))
