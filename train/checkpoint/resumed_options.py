"""Options that changed between two starts of a run: the run config's values replace those of the checkpoint.

The optimizer's and the scheduler's states bring their own learning rate, weight decay and so on, and the trainer's
state the steps between logs, evaluations and saves: without this a lower learning rate would be ignored silently.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from train.config.expert_parallel import ASKED_GROUP

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

log = logging.getLogger(__name__)

_OPTIONS = ("weight_decay", "betas", "eps")


def asked_groups(optimizer: Any) -> list[dict[str, Any]]:
    """The options of a fresh optimizer, by group of parameters."""
    return [{name: group[name] for name in ("lr", *_OPTIONS) if name in group} for group in optimizer.param_groups]


def apply_options(trainer: CheckpointedTrainer, asked: list[dict[str, Any]] | None) -> None:
    """Use the run config's values from the next step on, and report those that have changed.

    Unchanged ones stay as they are, to the bit.

    Args:
        asked: what `asked_groups` gave; None: unknown.
    """
    changed = [*_change_groups(trainer, asked), *_change_intervals(trainer)]
    for name, before, now in dict.fromkeys(changed):
        log.info(f"{name} is {now} from step {trainer.state.global_step + 1} on; until here it was {before}")


def _change_groups(trainer: CheckpointedTrainer, asked: list[dict[str, Any]] | None) -> list[tuple[str, Any, Any]]:
    groups = trainer.optimizer.param_groups
    numbers = [group.get(ASKED_GROUP, i) for i, group in enumerate(groups)]
    if asked is None or set(numbers) != set(range(len(asked))):
        return []
    asked = [asked[number] for number in numbers]
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


def _change_intervals(trainer: CheckpointedTrainer) -> list[tuple[str, Any, Any]]:
    """Steps between logs, evaluations and saves."""
    names = ("logging_steps", "eval_steps", "save_steps")
    state: Any = trainer.state  # compute_steps has no types
    before = [getattr(state, name) for name in names]
    state.compute_steps(trainer.args, state.max_steps)
    after = [getattr(state, name) for name in names]
    return [change for change in zip(names, before, after, strict=True) if change[1] != change[2]]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
