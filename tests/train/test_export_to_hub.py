"""train.export --push_to_hub, against a stand-in of the hub's API: what it sends, refuses and never shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.export_runs import add_checkpoint, run_export
from tests.support.hub_server import TOKEN, HubServer


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, and an environment that has a token for it and no login."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer().serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


@pytest.fixture
def run(tiny_run, tiny_model_dir):
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    return tiny_run


def test_the_folder_is_uploaded_into_a_private_repository(hub, run, tmp_path, capsys):
    run_export(run, tmp_path / "out", "--push_to_hub", "me/model", "--license", "apache-2.0")
    assert hub.repositories == {"me/model": True}
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    said = capsys.readouterr()
    assert f"pushed to {hub.url}/me/model" in said.out
    assert TOKEN not in said.out + said.err
    assert all(TOKEN.encode() not in content for content in hub.files.values())
    assert {TOKEN, ""} >= {token for _, path, token in hub.requests if not path.startswith("/lfs/")}


def test_a_name_alone_is_in_ones_own_namespace_and_private_may_be_false(hub, run, tmp_path):
    run_export(run, tmp_path / "out", "--push_to_hub", "model", "--private", "false")
    assert hub.repositories == {"me/model": False} and "model.safetensors" in hub.files


def refused(run, output, *options: str) -> str:
    with pytest.raises(SystemExit) as error:
        run_export(run, output, *options)
    assert error.value.code == 2 and TOKEN not in str(error.value)
    return str(error.value)


def test_what_cannot_be_uploaded_is_refused_before_the_work(hub, run, tmp_path, monkeypatch):
    from huggingface_hub import constants

    out, push = tmp_path / "out", ("--push_to_hub", "me/model")
    assert "expected NAMESPACE/NAME" in refused(run, out, "--push_to_hub", "me/my/model")
    assert "expected NAMESPACE/NAME" in refused(run, out, "--push_to_hub", "me/my model")
    hub.repositories["me/model"] = False
    assert "me/model is there and public: give --private false" in refused(run, out, *push)
    hub.role = "read"
    assert "the token can only read" in refused(run, out, *push)
    monkeypatch.setenv("HF_TOKEN", "hf_another-token-0123456789")
    assert "Invalid user token" in refused(run, out, *push)
    monkeypatch.delenv("HF_TOKEN")
    assert "it needs a token that may write: set HF_TOKEN, or run `hf auth login`" in refused(run, out, *push)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(run, out, *push)
    assert not out.exists() and not hub.files


def test_a_login_of_the_hub_will_do(hub, run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no-login").write_text(TOKEN)
    run_export(run, tmp_path / "out", "--push_to_hub", "me/model")
    assert hub.repositories == {"me/model": True}


def test_a_hub_that_fails_is_one_message_without_the_token_and_the_export_stays(hub, run, tmp_path, monkeypatch):
    import huggingface_hub.utils._http as http

    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    hub.broken = "/commit/"
    message = refused(run, tmp_path / "out", "--push_to_hub", "me/model")
    assert f"is exported, but not uploaded: {hub.url} says: " in message and "\n" not in message
    assert (tmp_path / "out" / "export.json").exists()


def test_a_hub_that_is_not_there_is_one_message_before_the_work(hub, run, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "--push_to_hub: http://127.0.0.1:9 says: " in refused(run, tmp_path / "out", "--push_to_hub", "me/model")
    assert not (tmp_path / "out").exists()


def test_the_address_is_that_of_the_environment(hub, tmp_path):
    """HF_ENDPOINT, as a user sets it."""
    (tmp_path / "README.md").write_text("# m")
    code = "import sys; from pathlib import Path; from train.serving.hub_upload import push; "
    code += "print(push(Path(sys.argv[1]), 'me/model', private=True))"
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.stdout == f"{hub.url}/me/model\n", done.stderr
    assert hub.files == {"README.md": b"# m"}
