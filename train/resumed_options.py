"""Options that may change when a run goes on: what the run config says now holds, not what the checkpoint says.

The optimizer's and the scheduler's states bring their own learning rate, weight decay and so on, and the trainer's
state the steps between logs, evaluations and saves: without this a lower learning rate would be ignored in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_OPTIONS = ("weight_decay", "betas", "eps")


def asked_groups(optimizer: Any) -> list[dict[str, Any]]:
    """What a fresh optimizer says, by group of parameters."""
    return [{name: group[name] for name in ("lr", *_OPTIONS) if name in group} for group in optimizer.param_groups]


def apply_options(trainer: Any, say: Callable[[str], None]) -> None:
    """Let the run config's values hold from the next step on, and say which ones have changed. Unchanged ones are left
    as they are, to the bit."""
    changed = [*_change_groups(trainer), *_change_intervals(trainer)]
    for name, before, now in dict.fromkeys(changed):
        say(f"{name} is {now} from step {trainer.state.global_step + 1} on; until here it was {before}")


def _change_groups(trainer: Any) -> list[tuple[str, Any, Any]]:
    groups, asked = trainer.optimizer.param_groups, trainer.asked_groups
    if asked is None or len(groups) != len(asked):
        return []
    changed = []
    for group, wanted in zip(groups, asked, strict=True):
        for name in _OPTIONS:
            if name in wanted and _plain(group[name]) != _plain(wanted[name]):
                changed.append((name, group[name], wanted[name]))
                group[name] = wanted[name]
    rates = [(group.get("initial_lr"), wanted["lr"]) for group, wanted in zip(groups, asked, strict=True)]
    if any(before not in (None, now) for before, now in rates):
        changed += [("learning_rate", before, now) for before, now in rates if before != now]
        _change_rates(groups, [now for _, now in rates], trainer.lr_scheduler)
    return changed


def _change_rates(groups: list[dict[str, Any]], rates: list[float], scheduler: Any) -> None:
    """Set the peak rates, and from them the present ones."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    lambdas = getattr(scheduler, "lr_lambdas", None)
    for i, (group, rate) in enumerate(zip(groups, rates, strict=True)):
        share = lambdas[i](scheduler.last_epoch) if lambdas else group["lr"] / group["initial_lr"]
        group["initial_lr"], group["lr"] = rate, rate * share
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = list(rates)
    scheduler._last_lr = [group["lr"] for group in groups]


def _change_intervals(trainer: Any) -> list[tuple[str, Any, Any]]:
    """Steps between logs, evaluations and saves."""
    names = ("logging_steps", "eval_steps", "save_steps")
    before = [getattr(trainer.state, name) for name in names]
    trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
    after = [getattr(trainer.state, name) for name in names]
    return [change for change in zip(names, before, after, strict=True) if change[1] != change[2]]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
