"""train.checkpoint.resumed_options: changed options, where groups of parameters were split since they were asked."""

from __future__ import annotations

from types import SimpleNamespace

from train.checkpoint.resumed_options import apply_options
from train.run import log


def test_groups_that_were_split_take_the_options_of_the_one_they_come_from(capsys):
    """As under expert parallelism, where DeepSpeed keeps experts apart."""
    asked = [{"lr": 1e-4, "weight_decay": 0.5}, {"lr": 1e-4, "weight_decay": 0.0}]
    was = [{"asked_group": number, "weight_decay": decay} for number, decay in ((0, 0.1), (1, 0.0), (0, 0.1))]
    groups = [{**group, "lr": 5e-4, "initial_lr": 1e-3} for group in was]
    scheduler = SimpleNamespace(last_epoch=3, lr_lambdas=[lambda step: 0.5] * 3, base_lrs=[1e-3] * 3)
    state = SimpleNamespace(global_step=3, max_steps=9, logging_steps=1, eval_steps=1, save_steps=1)
    state.compute_steps = lambda args, steps: None
    optimizer = SimpleNamespace(param_groups=groups)
    trainer = SimpleNamespace(optimizer=optimizer, lr_scheduler=scheduler, state=state, args=None)
    log.set_up()
    apply_options(trainer, asked)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5]
    assert [group["lr"] for group in groups] == [5e-5] * 3 and scheduler.base_lrs == [1e-4] * 3
    said = capsys.readouterr().out
    assert "weight_decay is 0.5" in said and "learning_rate is 0.0001 from step 4 on" in said
    for unknown in (None, asked[:1]):  # nothing is changed by guess
        apply_options(trainer, unknown)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5]
