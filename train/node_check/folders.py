"""Folders that every node must see: shared ones by a token, data and model by what they hold."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.shards import check_files, manifest_sha256, read_manifest
from train.node_check.bounded import Background
from train.node_check.expected import Expected
from train.node_check.findings import Node
from train.run.model_identity import file_digests

FOLDER_SECONDS = 60.0  # for each, side by side: a network file system that hangs never answers


def look_at_folders(node: Node, expected: Expected) -> None:
    """Add the problems of all folders, and what data and model folder hold."""
    asked: list[tuple[str, Background[list[str]]]] = []

    def ask(folder: str, work: Callable[[], list[str]]) -> None:
        asked.append((folder, Background(work)))

    for folder in dict.fromkeys(expected.shared_dirs):
        ask(folder, lambda folder=folder: shared_problems(folder, expected))  # type: ignore[misc]
    if expected.data_dir:
        ask(expected.data_dir, lambda: data_problems(node, expected.data_dir))
    if expected.model_dir:
        ask(expected.model_dir, lambda: model_problems(node, expected.model_dir))
    deadline = time.monotonic() + FOLDER_SECONDS
    for folder, answer in asked:
        try:
            node.problems += answer.result(max(0.01, deadline - time.monotonic()))
        except TimeoutError:
            node.problems.append(f"{folder} does not answer within {FOLDER_SECONDS:g} s: its file system hangs")
        except (OSError, ValueError) as error:
            node.problems.append(f"{folder} cannot be read: {error}")


def shared_problems(folder: str, expected: Expected) -> list[str]:
    """Of a folder that must be the first node's own, with room in it."""
    if not Path(folder, expected.token).exists():
        return [f"{folder} is another folder here than on the first node: use a shared one"]
    free = shutil.disk_usage(folder).free / 2**30
    if free < expected.min_free_gib:
        return [f"{folder} has {free:.1f} GiB free, {expected.min_free_gib:g} expected (PACKHAUL_MIN_FREE_GIB)"]
    return []


def data_problems(node: Node, folder: str) -> list[str]:
    """Of a shard directory, which may be read-only or a copy: its files are there in full, and its manifest's hash."""
    if not Path(folder).is_dir():
        return [f"the data folder {folder} is missing"]
    manifest = read_manifest(folder)
    node.contents[f"the data folder {folder}"] = {"manifest.json": manifest_sha256(folder)}
    return [f"the data folder {folder}: {problem}" for problem in check_files(folder, manifest)[:3]]


def model_problems(node: Node, folder: str) -> list[str]:
    """Of a model's folder, or an id of the hub: its weights are there, and the digest of each file."""
    found = file_digests(folder)
    if found is None and (Path(folder).is_absolute() or Path(folder).is_dir()):
        lacks = "holds no model, or not all files of one" if Path(folder).is_dir() else "is missing"
        return [f"the model folder {folder} {lacks}"]
    node.contents[f"the model folder {folder}"] = found or {}
    return []
