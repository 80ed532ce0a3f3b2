"""What preflight says about `bf16_copies`, for the launches and options that cannot have them."""

from __future__ import annotations

import pytest

from tests.support.preflight_runs import CPU, problems


@pytest.fixture
def run(flags):
    """A sound run with copies, but for its precision."""
    return [*flags[: -len(CPU)], "--use_cpu", "--bf16_copies"]


def test_one_process_in_bf16_can(run):
    assert "bf16_copies" not in problems(run, "--bf16=true")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--bf16=false",), "bf16_copies: expected bf16: true, found no"),
        (("--bf16=true", "--dtype=bfloat16"), "bf16_copies: expected dtype: float32, found bfloat16"),
        (("--bf16=true", "--use_peft"), "bf16_copies: with use_peft the weights are not trained"),
    ],
)
def test_refused_options(more, expected, run):
    assert expected in problems(run, *more)


def test_deepspeed_has_bf16_weights_by_itself(run, launch_file):
    found = problems(run, "--bf16=true", launch=launch_file())
    assert "bf16_copies: expected one process without DeepSpeed or FSDP, found 2 of DEEPSPEED" in found


def test_several_processes(run):
    assert "bf16_copies: expected one process" in problems(run, "--bf16=true", world_size=2)


def test_a_negative_size_of_logits(flags):
    with pytest.raises(ValueError, match="keep_logits_gib"):
        problems(flags, "--keep_logits_gib=-1")
