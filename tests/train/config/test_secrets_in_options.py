"""A secret among the options is refused, and no message shows it."""

from __future__ import annotations

import pytest

from train.config.own_options import known_options
from train.config.run_config import load_run_config
from train.config.secrets_in_options import named_secret

HUB = "hf_" + "aB3" * 10
FORMS = [
    HUB,
    "sk-" + "x1" * 12,
    "ghp_" + "a" * 36,
    "github_pat_" + "a" * 22,
    "AKIA" + "A1" * 8,
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
    "xoxb-123456789012-abc",
]


def refusal(*flags):
    with pytest.raises(ValueError) as error:
        load_run_config(["--data", "shards", "--output_dir", "run", "--model_name_or_path", "model", *flags])
    return str(error.value)


@pytest.mark.parametrize("secret", FORMS)
@pytest.mark.parametrize("name", ["run_name", "learning_rate", "hub_token", "no_such_option", "bf16", "optim"])
def test_by_its_form_in_any_option(name, secret):
    said = refusal(f"--{name}", secret)
    assert f"--{name}: " in said and secret not in said


@pytest.mark.parametrize("secret", ["opensesame", "1", "correct horse"])
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("hub_token", "{}"),
        ("model_init_kwargs", '{{"token": "{}"}}'),
        ("model_init_kwargs", '{{"storage": {{"secret_access_key": ["{}"]}}}}'),
    ],
)
def test_by_the_name_over_it(flag, value, secret):
    said = refusal(f"--{flag}", value.format(secret))
    assert f"flag --{flag}: " in said and f"'{secret}'" not in said and f'"{secret}"' not in said
    assert "HF_TOKEN" in said


def test_of_an_address_what_is_secret_alone():
    said = refusal("--model_name_or_path", "https://me:pw12345@host/model", "--run_name", "https://host/a:b@c")
    assert "model_name_or_path: (hidden) is refused" in said and "pw12345" not in said and "run_name" not in said


def test_where_a_flag_was_expected():
    assert HUB not in refusal("--bf16", "true", HUB)


def test_every_hidden_name_of_the_libraries_is_one():
    """`eos_token` and `pad_token` are text, and nothing else is taken for a secret."""
    assert [name for name in known_options() if named_secret(name)] == ["hub_token"]


def test_ordinary_values_pass():
    revision = "--model_revision", "0123456789abcdef0123456789abcdef01234567"
    config = load_run_config(["--data", "s", "--output_dir", "sk-run", "--model_name_or_path", "a/hf_b", *revision])
    assert config.model["model_revision"] == revision[1]
