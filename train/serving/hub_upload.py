"""Upload of an export to the hub: checked before the work, with the token of the environment or of the hub's login.

The token is never shown: what the hub or the network says comes without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOGIN = "set HF_TOKEN, or run `hf auth login`"


def check_upload(repo_id: str, *, private: bool) -> None:
    """Refuse what would fail after the long part of an export.

    Args:
        repo_id: NAMESPACE/NAME, or NAME in the user's own namespace.
        private: whether the repository has to be private.

    Raises:
        ValueError: the id is malformed, there is no valid token that may write, the hub is not reached, or a public
            repository is there although it has to be private.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--push_to_hub {repo_id}: expected NAMESPACE/NAME: {error}") from None
    if constants.HF_HUB_OFFLINE:
        raise ValueError("--push_to_hub: HF_HUB_OFFLINE is set: set it to 0 where the hub can be reached")
    if not get_token():
        raise ValueError(f"--push_to_hub: it needs a token that may write: {_LOGIN}")
    api = HfApi()
    with _said_plainly("--push_to_hub"):
        user = api.whoami()
        name = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        try:
            is_public = not api.repo_info(name).private
        except RepositoryNotFoundError:
            is_public = False
    _check_role(user)
    if private and is_public:
        raise ValueError(f"--push_to_hub: {name} is there and public: give --private false to upload into it")


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a folder as one commit; the repository's address.

    Raises:
        ValueError: the hub or the network has refused it; says how to upload the folder again.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _said_plainly(f"{folder} is exported, but not uploaded"):
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Export by packhaul")
    return str(address)


def _check_role(user: dict[str, Any]) -> None:
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ValueError(f"--push_to_hub: the token can only read: {_LOGIN} with one that may write")


@contextmanager
def _said_plainly(where: str) -> Iterator[None]:
    """What goes wrong between here and the hub, as one message without the token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HTTPError  # of the client that the hub's library uses

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        if token := get_token():
            text = text.replace(token, "(hidden)")
        raise ValueError(f"{where}: {constants.ENDPOINT} says: {text or type(error).__name__}") from None
