"""Prebuilt flash attention kernels from the hub: found in the cache, loaded from there, never downloaded.

A stand-in for the package `kernels` (its API as read in 0.17) and a cache folder as huggingface_hub makes it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import sys
import types
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.attention_settings import setting
from train.model import attention, hub_kernels
from train.model.attention import choose, problems_of_name
from train.model.hub_kernels import HubKernel, fetch_command, kernel_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUILD = "torch213-cxx11-cu130-x86_64-linux"
FA2, FA3 = "kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3"


class StandIn(types.ModuleType):
    """`kernels`: finds a build in the cache by revision, takes what LOCAL_KERNELS names first."""

    def __init__(self):
        super().__init__("kernels")
        self.loaded, self.fails = [], None

    def install_kernel(self, repo_id, *, revision=None, version=None, local_files_only=False):
        assert local_files_only, "a download"
        folder = repository_folder(repo_id)
        builds = list(folder.glob(f"snapshots/{(folder / 'refs' / revision).read_text()}/build/*"))
        if not [path for path in builds if path.name == BUILD]:
            raise FileNotFoundError(f"Cannot find a build variant for this system in {repo_id}:\n\n{builds[0].name}")
        return builds[0].parent / BUILD

    def get_kernel(self, repo_id, *, revision=None, version=None, **kwargs):
        overrides = dict(entry.split("=") for entry in os.environ.get("LOCAL_KERNELS", "").split(":") if entry)
        assert repo_id in overrides, "would ask the hub"
        if self.fails:
            raise self.fails
        self.loaded.append((repo_id, overrides[repo_id]))
        return types.SimpleNamespace(flash_attn_varlen_func=lambda: None)


def repository_folder(repository: str) -> Path:
    return Path(os.environ["KERNELS_CACHE"]) / f"kernels--{repository.replace('/', '--')}"


def put_in_cache(repository: str, revision: str, build: str = BUILD) -> Path:
    """As after the command that fetches it; the build's folder."""
    folder = repository_folder(repository)
    made = folder / "snapshots" / COMMIT / "build" / build
    made.mkdir(parents=True)
    (made / "metadata.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(COMMIT)
    return made


@pytest.fixture
def versions(monkeypatch):
    """Installed packages, beside those that are."""
    given, real = {}, importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: given[name] if name in given else real(name))
    return given


@pytest.fixture
def package(versions, monkeypatch, tmp_path):
    """`kernels`, installed, with an empty cache."""
    module = StandIn()
    versions["kernels"] = hub_kernels.package_range()[0]
    monkeypatch.setitem(sys.modules, "kernels", module)
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    return module


class TestAuto:
    def test_without_the_package(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
        put_in_cache(FA2, "v4")
        name, why = choose("auto", setting())
        assert name == "varlen"
        assert "flash_attention_2: flash-attn is not installed; 'kernels>=" in why

    def test_without_a_kernel_it_says_what_to_fetch(self, package):
        name, why = choose("auto", setting())
        assert name == "varlen" and package.loaded == []
        assert f"flash-attn-3 is not installed; the kernel {FA3} v1 is not in the hub cache" in why
        assert fetch_command(HubKernel(FA3, "v1")) in why

    def test_a_kernel_in_the_cache_takes_its_place(self, package):
        build = put_in_cache(FA2, "v4")
        name, why = choose("auto", setting())
        assert name == "flash_attention_2"
        taken = f"{FA2} v4, commit {COMMIT}, build {BUILD}, by kernels {hub_kernels.package_range()[0]}"
        assert why.startswith(taken)
        assert package.loaded == [(FA2, str(build))]
        assert os.environ["LOCAL_KERNELS"] == f"{FA2}={build}"  # what transformers will load

    def test_the_best_comes_first(self, package):
        put_in_cache(FA2, "v4")
        put_in_cache(FA3, "v1")
        assert choose("auto", setting())[0] == "flash_attention_3"

    def test_packages_come_first_in_their_place(self, package, monkeypatch):
        monkeypatch.setattr(attention, "has_distribution", lambda name: name == "flash-attn-3")
        put_in_cache(FA2, "v4")
        assert choose("auto", setting())[1].startswith("flash-attn-3 is installed")
        monkeypatch.setattr(attention, "has_distribution", lambda name: name == "flash-attn")
        put_in_cache(FA3, "v1")
        assert choose("auto", setting())[0] == "flash_attention_3"  # of the cache, before the package for 2

    @pytest.mark.parametrize(
        "changes", [{"capability": (8, 0)}, {"half": False}, {"compatible": ["eager"]}, {"config": {"head_dim": 264}}]
    )
    def test_the_rules_stay(self, package, changes):
        put_in_cache(FA3, "v1")
        name, why = choose("auto", setting(**changes))
        assert name != "flash_attention_3" and package.loaded == [] and "LOCAL_KERNELS" not in os.environ
        assert FA3 not in why  # no advice to fetch what would not do

    def test_no_build_for_this_torch(self, package):
        put_in_cache(FA2, "v4", build="torch29-cxx11-cu126-x86_64-linux")
        name, why = choose("auto", setting())
        assert name == "varlen" and "LOCAL_KERNELS" not in os.environ
        assert f"the kernel {FA2} v4 cannot be loaded: Cannot find a build variant" in why and "\n" not in why

    def test_a_kernel_that_cannot_be_loaded(self, package, monkeypatch):
        monkeypatch.setenv("LOCAL_KERNELS", "other/kernel=/there")
        put_in_cache(FA2, "v4")
        package.fails = OSError("libcudart.so.13: cannot open shared object file")
        name, why = choose("auto", setting())
        assert name == "varlen" and "libcudart.so.13" in why
        assert os.environ["LOCAL_KERNELS"] == "other/kernel=/there"

    def test_a_folder_of_the_users(self, package, monkeypatch):
        """LOCAL_KERNELS, as `kernels` reads it; it need not be in the cache."""
        monkeypatch.setenv("LOCAL_KERNELS", f"{FA2}=/mine/{BUILD}")
        name, why = choose("auto", setting())
        assert name == "flash_attention_2" and package.loaded == [(FA2, f"/mine/{BUILD}")]
        assert f"commit not from the hub cache, build {BUILD}" in why


class TestByName:
    @pytest.mark.parametrize("asked", ["flash_attention_2", FA2])
    def test_preflight_and_training_say_the_same(self, asked, versions, tmp_path, monkeypatch):
        """Not installed, of another version, not in the cache, there."""
        monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
        monkeypatch.delenv("LOCAL_KERNELS", raising=False)
        least, below = hub_kernels.package_range()
        both = f"'kernels>={least},<{below}'"

        def said() -> str:
            early = "".join(problems_of_name(asked, False, True, None))
            with pytest.raises(ValueError) as error:
                choose(asked, setting())
            assert early.removeprefix(f"{asked}: ").split("; or")[0] in str(error.value)
            return early

        assert f"{both} is not installed" in said()
        versions["kernels"] = "0.9.1"
        assert f"kernels 0.9.1 is installed, transformers takes {both}" in said()
        versions["kernels"] = below
        assert f"kernels {below} is installed" in said()
        versions["kernels"] = least
        assert f"the kernel {FA2} v4 is not in the hub cache" in said() and "HF_HUB_OFFLINE=0 python -c" in said()
        put_in_cache(FA2, "v4")
        monkeypatch.setitem(sys.modules, "kernels", StandIn())
        assert list(problems_of_name(asked, False, True, None)) == []
        name, why = choose(asked, setting())
        assert name == asked and why.startswith(f"asked for: {FA2} v4, commit {COMMIT}, build {BUILD}")

    def test_a_commit(self, package):
        asked = f"{FA2}@{COMMIT}"
        assert f"{FA2} {COMMIT} is not in the hub cache" in "".join(problems_of_name(asked, False, True, None))
        put_in_cache(FA2, COMMIT)
        assert list(problems_of_name(asked, False, True, None)) == []
        assert choose(asked, setting())[0] == asked

    def test_half_of_a_download(self, package):
        folder = put_in_cache(FA2, "v4")
        (folder / "metadata.json").unlink()
        folder.rmdir()
        assert "is not in the hub cache" in "".join(problems_of_name(FA2, False, True, None))

    def test_a_package_needs_no_kernel(self, monkeypatch):
        monkeypatch.setattr(attention, "has_distribution", lambda name: name == "flash-attn")
        assert list(problems_of_name("flash_attention_2", False, True, None)) == []
        assert choose("flash_attention_2", setting()) == ("flash_attention_2", "asked for")


def test_kernels_and_versions_are_those_of_transformers():
    """Read without importing it."""
    from transformers.integrations.hub_kernels import get_attn_kernel_version
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK, FLASH_ATTN_KERNEL_VERSIONS
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    for name, repository in FLASH_ATTN_KERNEL_FALLBACK.items():
        assert kernel_of(name) == HubKernel(repository, f"v{get_attn_kernel_version(repository)}")
    for repository in [*FLASH_ATTN_KERNEL_VERSIONS, "kernels-community/another"]:
        assert kernel_of(repository) == HubKernel(repository, f"v{get_attn_kernel_version(repository)}")
    assert hub_kernels.package_range() == (KERNELS_MIN_VERSION, KERNELS_MAX_VERSION)
    assert kernel_of("sdpa") is None and set(FLASH_ATTN_KERNEL_FALLBACK) == set(attention.FLASH)


def test_the_extra_is_what_transformers_takes():
    least, below = hub_kernels.package_range()
    listed = re.search(r'^kernels = \["kernels>=(.*),<(.*)"\]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed and listed[1] == least and below.startswith(listed[2])


def test_the_command_is_python():
    code = fetch_command(HubKernel(FA2, "v4")).split("'")[1]
    assert [node.value.func.id for node in ast.parse(code).body if isinstance(node, ast.Expr)] == ["install_kernel"]
