"""Folders of a node: shared ones, the data and the model."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from data_prep.shards import write_manifest
from train.node_check import folders
from train.node_check.comparison import other_contents
from train.node_check.expected import Expected
from train.node_check.findings import Node
from train.node_check.folders import look_at_folders


def looked(**expected) -> Node:
    node = Node("n1")
    look_at_folders(node, Expected(**expected))
    return node


class TestShared:
    def test_with_the_token_and_room(self, tmp_path):
        (tmp_path / "a b").mkdir()
        (tmp_path / "a b" / "token").touch()
        assert looked(shared_dirs=(str(tmp_path / "a b"),), token="token").problems == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"token": "other"}, "is another folder here than on the first node"),
            ({"min_free_gib": 1e9}, "GiB free, 1e+09 expected (PACKHAUL_MIN_FREE_GIB)"),
        ],
    )
    def test_otherwise(self, tmp_path, change, message):
        (tmp_path / "token").touch()
        (problem,) = looked(**{"shared_dirs": (str(tmp_path),), "token": "token", **change}).problems
        assert message in problem

    def test_a_file_system_that_hangs(self, tmp_path, monkeypatch):
        (tmp_path / "token").touch()
        monkeypatch.setattr(folders, "FOLDER_SECONDS", 0.2)
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: time.sleep(5))
        (problem,) = looked(shared_dirs=(str(tmp_path),), token="token").problems
        assert problem == f"{tmp_path} does not answer within 0.2 s: its file system hangs"

    def test_many_that_hang_wait_side_by_side(self, tmp_path, monkeypatch):
        (tmp_path / "token").touch()
        monkeypatch.setattr(folders, "FOLDER_SECONDS", 1.0)
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: time.sleep(30))
        began = time.monotonic()
        names = tuple(f"{tmp_path}{'/.' * number}/" for number in range(20))
        assert len(looked(shared_dirs=names, token="token").problems) == 20
        assert time.monotonic() - began < 15

    def test_one_that_cannot_be_read(self, tmp_path, monkeypatch):
        def stale(*_):
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(folders.Path, "exists", stale)
        (problem,) = looked(shared_dirs=(str(tmp_path),), token="token").problems
        assert problem == f"{tmp_path} cannot be read: [Errno 116] Stale file handle"


@pytest.fixture
def data(tmp_path):
    """A shard directory with one file."""
    folder = tmp_path / "shards"
    (folder / "train").mkdir(parents=True)
    (folder / "train/00000.arrow").write_bytes(b"rows")
    shard = {"file": "train/00000.arrow", "rows": 1, "bytes": 4}
    splits = {"train": {"rows": 1, "shards": [shard]}, "eval": {"rows": 0, "shards": []}}
    write_manifest(folder, {"format_version": 1, "splits": splits})
    return folder


class TestData:
    def test_the_same_and_read_only(self, data):
        data.chmod(0o555)
        node = looked(data_dir=str(data))
        assert not node.problems and not list(other_contents([looked(data_dir=str(data)), node]))

    def test_missing(self, tmp_path):
        assert looked(data_dir=str(tmp_path / "no")).problems == [f"the data folder {tmp_path / 'no'} is missing"]

    def test_a_copy_that_is_not_whole(self, data):
        (data / "train/00000.arrow").unlink()
        (problem,) = looked(data_dir=str(data)).problems
        assert "the data folder" in problem and "train/00000.arrow" in problem

    def test_a_damaged_manifest(self, data):
        (data / "manifest.json").write_text("{")
        (problem,) = looked(data_dir=str(data)).problems
        assert "not readable as JSON" in problem

    def test_other_shards(self, data):
        first = looked(data_dir=str(data))
        manifest = json.loads((data / "manifest.json").read_text())
        del manifest["sha256"]
        write_manifest(data, {**manifest, "seq_len": 7})
        ((_, problem),) = other_contents([first, looked(data_dir=str(data))])
        assert problem == f"the data folder {data} holds other shards: manifest.json (compared with n1)"


class TestModel:
    @pytest.fixture
    def model(self, tiny_model_dir, tmp_path):
        return shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")

    def test_a_copy(self, model):
        assert looked(model_dir=str(model)).problems == []
        ((folder, found),) = looked(model_dir=str(model)).contents.items()
        assert folder == f"the model folder {model}" and set(found) == {"config.json", "model.safetensors"}

    @pytest.mark.parametrize(("kept", "lacks"), [(False, "is missing"), (True, "holds no model, or not all files")])
    def test_missing(self, model, kept, lacks):
        shutil.rmtree(model)
        if kept:
            model.mkdir()
        (problem,) = looked(model_dir=str(model)).problems
        assert problem.startswith(f"the model folder {model} {lacks}")

    def test_weights_that_end_too_early(self, model):
        (model / "model.safetensors").write_bytes(b"nothing")
        (problem,) = looked(model_dir=str(model)).problems
        assert "expected a safetensors file" in problem

    def test_other_weights_are_named(self, model):
        first = looked(model_dir=str(model))
        content = bytearray((model / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (model / "model.safetensors").write_bytes(content)
        ((_, problem),) = other_contents([first, looked(model_dir=str(model))])
        assert problem == f"the model folder {model} holds other weights: model.safetensors (compared with n1)"

    def test_one_that_only_some_nodes_have_in_the_hub_s_cache(self, model):
        """Which node has it is known on no node alone."""
        none = looked(model_dir="someone/no-such-model")
        assert not none.problems
        some = Node("n0", contents={"the model folder someone/no-such-model": {"config.json": "a", "w": "b"}})
        ((_, problem),) = other_contents([some, none])
        assert problem.endswith(" is not on this node (compared with n0)")
