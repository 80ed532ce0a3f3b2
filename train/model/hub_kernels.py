"""Prebuilt flash attention kernels from the hub: which ones, whether they are here, how to fetch them.

Where a flash-attn package is missing and `kernels` is installed, transformers takes such a kernel from the hub by the
version that it names. Training downloads none: a kernel counts if it is in the hub cache, at the commit that the
version had when it was fetched, and that one is loaded whatever the hub has by now (through LOCAL_KERNELS, which
`kernels` looks at first). So it works offline, and all processes and resumes compute with the same code.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.library_options import installed_version, package_folder, parse_source

HUB = "kernels-community/"
LOCAL = "LOCAL_KERNELS"  # repository=folder:repository=folder


@dataclass(frozen=True)
class HubKernel:
    """A kernel's repository and the branch, tag or commit that is taken of it."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository} {self.revision}"


def kernel_of(attention: str) -> HubKernel | None:
    """What transformers takes for an attention implementation; None if that is no kernel from the hub.

    Args:
        attention: flash_attention_2, or a kernel by name: kernels-community/flash-attn2, REPOSITORY@COMMIT.
    """
    tables = _tables()
    named = (
        attention.partition(":")[0]
        if attention.startswith(HUB)
        else tables["FLASH_ATTN_KERNEL_FALLBACK"].get(attention)
    )
    if named is None:
        return None
    repository, _, revision = named.partition("@")
    return HubKernel(repository, revision or f"v{tables['FLASH_ATTN_KERNEL_VERSIONS'].get(repository, 1)}")


def missing(attention: str) -> str | None:
    """Why no kernel for an attention implementation is here, and what to do; None if one is. Needs no torch."""
    kernel = kernel_of(attention)
    if kernel is None:
        return "transformers knows no kernel for it"
    if reason := _package_missing():
        return reason
    if kernel.repository in _overrides() or _snapshot(kernel) is not None:
        return None
    return (
        f"the kernel {kernel} is not in the hub cache, and training downloads none: fetch it where there is a network, "
        f"such as on the login node: {fetch_command(kernel)}"
    )


def fetch_command(kernel: HubKernel) -> str:
    """Downloads the build for the torch and CUDA of this environment; a GPU is not needed.

    By revision: `kernels` resolves a version to a commit by asking the hub, and leaves nothing in the cache that would
    tell offline which commit it was.
    """
    code = f'from kernels import install_kernel; install_kernel("{kernel.repository}", revision="{kernel.revision}")'
    return f"HF_HUB_OFFLINE=0 python -c '{code}'"


def unusable(attention: str) -> str | None:
    """Why a kernel that is not `missing` cannot be loaded; None if it now is, and will be used. Imports torch."""
    kernel = kernel_of(attention)
    assert kernel is not None
    taken = _overrides()
    try:
        _load(kernel)
    except Exception as error:  # of any kind: no build for this torch, a package that it needs, a library not found
        _override(taken)
        return f"the kernel {kernel} cannot be loaded: {' '.join(str(error).split())}"
    return None


def describe(attention: str) -> str:
    """Version, commit, build and package, for the log: of a kernel that is not `unusable`."""
    kernel = kernel_of(attention)
    assert kernel is not None
    folder = _overrides()[kernel.repository]
    commit = folder.parent.parent.name if folder.parent.name == "build" else "not from the hub cache"
    return f"{kernel}, commit {commit}, build {folder.name}, by kernels {importlib.metadata.version('kernels')}"


def _load(kernel: HubKernel) -> None:
    """Find the build for this torch and CUDA, name it as the one to take, and load it as transformers will."""
    from kernels import get_kernel, install_kernel

    taken = _overrides()
    if kernel.repository not in taken:
        folder = install_kernel(kernel.repository, revision=kernel.revision, local_files_only=True)
        _override({**taken, kernel.repository: Path(folder)})
    module = get_kernel(kernel.repository, revision=kernel.revision)
    if not hasattr(module, "flash_attn_varlen_func"):
        raise ValueError("it has no flash_attn_varlen_func")


def _package_missing() -> str | None:
    """Why transformers would not use the package `kernels`."""
    least, below = package_range()
    try:
        found = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return f"'kernels>={least},<{below}' is not installed"
    if _numbers(least) <= _numbers(found) < _numbers(below):
        return None
    return f"kernels {found} is installed, transformers takes 'kernels>={least},<{below}'"


def package_range() -> tuple[str, str]:
    """The version of `kernels` that the installed transformers takes: at least, below."""
    found = _constants("utils/import_utils.py", "KERNELS_MIN_VERSION", "KERNELS_MAX_VERSION")
    return found["KERNELS_MIN_VERSION"], found["KERNELS_MAX_VERSION"]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _overrides() -> dict[str, Path]:
    """The folders that LOCAL_KERNELS names, by repository."""
    entries = [entry.partition("=") for entry in os.environ.get(LOCAL, "").split(":") if "=" in entry]
    return {repository: Path(folder) for repository, _, folder in entries}


def _override(folders: dict[str, Path]) -> None:
    os.environ.pop(LOCAL, None)
    if folders:
        os.environ[LOCAL] = ":".join(f"{repository}={folder}" for repository, folder in folders.items())


def _snapshot(kernel: HubKernel) -> Path | None:
    """The kernel's folder in the hub cache, with a build in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = os.environ.get("KERNELS_CACHE")
    try:
        folder = snapshot_download(
            kernel.repository, repo_type="kernel", revision=kernel.revision, cache_dir=cache, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder) if any(Path(folder).glob("build/*/")) else None


def _tables() -> Mapping[str, Any]:
    """Of transformers: attention -> repository, and repository -> version."""
    return _constants("modeling_flash_attention_utils.py", "FLASH_ATTN_KERNEL_FALLBACK", "FLASH_ATTN_KERNEL_VERSIONS")


@functools.cache
def _constants(file: str, *names: str) -> Mapping[str, Any]:
    """Of a source file of transformers, without importing it, as they are on CUDA."""
    found: dict[str, Any] = {name: {} for name in names}
    for statement in parse_source(package_folder("transformers") / file).body:
        name = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else None
        if isinstance(statement, ast.Assign) and name in found:
            found[name] = _value(statement.value)
    return found


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.IfExp):
        return _value(node.body if _holds(node.test) else node.orelse)
    return ast.literal_eval(node)


def _holds(test: ast.expr) -> bool:
    """`is_torch_greater_or_equal("2.10")`; any other condition, such as ROCm, is taken not to hold."""
    if isinstance(test, ast.Call) and ast.unparse(test.func) == "is_torch_greater_or_equal":
        return installed_version("torch") >= _numbers(ast.literal_eval(test.args[0]))
    return False
