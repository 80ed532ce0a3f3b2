"""Numbers that train nothing, train wrongly or fail only later are refused before anything loads."""

from __future__ import annotations

import pytest

from train.config.own_options import known_options
from train.config.refused_options import REFUSALS
from train.config.run_config import load_run_config
from train.config.value_ranges import RANGES, values_out_of_range


def test_every_number_has_a_range_or_one_value():
    """An option that a new version of the libraries brings has to be looked at."""
    numbers = {name for name, option in known_options().items() if option.kinds & {"int", "float"}}
    assert numbers == set(RANGES) | (numbers & set(REFUSALS))
    assert not set(RANGES) & set(REFUSALS)


def test_every_default_lies_in_its_range():
    defaults = {name: option.default for name, option in known_options().items()}
    assert list(values_out_of_range(defaults)) == []


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("max_steps", (0, -2), (-1, 1)),
        ("num_train_epochs", (0, -1.0), (0.01, 3)),
        ("per_device_train_batch_size", (0, -4), (1,)),
        ("gradient_accumulation_steps", (0,), (1,)),
        ("learning_rate", (0, -1e-5, 5), (1e-9, 1.0)),
        ("weight_decay", (-0.1, 2), (0, 1)),
        ("adam_beta1", (-0.1, 1.0), (0, 0.9)),
        ("adam_beta2", (1.0, 1.5), (0.999,)),
        ("adam_epsilon", (0, 1), (1e-8,)),
        ("max_grad_norm", (-1,), (0, 1.0)),
        ("warmup_steps", (-1, 2.5), (0, 0.03, 1, 100)),
        ("label_smoothing_factor", (1, 2, -0.1), (0, 0.99)),
        ("logging_steps", (0, -1, 1.5), (0.5, 1, 2.0)),
        ("save_steps", (0, -10), (0.1, 500)),
        ("save_total_limit", (0, -1), (1,)),
        ("seed", (-1, 2**32), (0, 2**32 - 1)),
        ("lora_r", (0, -8), (1,)),
        ("lora_alpha", (0, -16), (1,)),
        ("lora_dropout", (1, -0.1), (0, 0.5)),
        ("ddp_timeout", (0,), (1,)),
    ],
)
def test_the_ends_of_a_range(name, bad, good):
    for value in bad:
        ((found, reason),) = values_out_of_range({name: value})
        assert found == name and f"found {value}" in reason and reason.startswith("expected ")
    for value in good:
        assert list(values_out_of_range({name: value})) == []


def test_what_is_not_a_number_is_left_to_its_type():
    assert list(values_out_of_range({"pad_to_multiple_of": "auto", "eval_steps": None, "max_steps": True})) == []


def test_a_file_is_refused_with_its_lines(yaml_file):
    with pytest.raises(ValueError) as error:
        load_run_config(["--config", yaml_file("max_steps: 0\nlearning_rate: -1.0e-5\n"), "--warmup_steps", "-3"])
    said = str(error.value)
    assert "line 4: max_steps: expected 1 or more, found 0: leave it out, or write -1, to train num_train" in said
    assert "line 5: learning_rate: expected above 0 and at most 1, found -1e-05" in said
    assert "flag --warmup_steps: expected 0 or more and whole where it is 1 or more, found -3" in said
