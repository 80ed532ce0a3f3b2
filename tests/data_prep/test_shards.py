"""The manifest of a shard directory: it knows when its content is not what was written, and identifies the data."""

from __future__ import annotations

import hashlib
import json

import pytest

from data_prep.shards import FORMAT_VERSION, MANIFEST, manifest_sha256, read_manifest, write_manifest

CONTENT = {"format_version": FORMAT_VERSION, "seq_len": 256, "end_token_ids": [3], "bos_token_id": None}


@pytest.mark.parametrize(
    "change", [{"seq_len": 257}, {"end_token_ids": [4]}, {"more": 1}, {"sha256": "0" * 64}, {"bos_token_id": 0}]
)
def test_a_manifest_whose_content_was_changed_is_refused(change, tmp_path):
    write_manifest(tmp_path, CONTENT)
    path = tmp_path / MANIFEST
    written = json.loads(path.read_text())
    assert read_manifest(tmp_path) == written == {**CONTENT, "sha256": written["sha256"]}
    path.write_text(json.dumps({**written, **change}))
    with pytest.raises(ValueError, match=r"manifest\.json: its content is not what was written"):
        read_manifest(tmp_path)


def test_a_manifest_that_a_program_wrote_anew_with_the_same_content_is_sound(tmp_path):
    write_manifest(tmp_path, CONTENT)
    written = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(written, indent=7))
    assert read_manifest(tmp_path) == written
    del written["sha256"]  # as before manifests had it
    (tmp_path / MANIFEST).write_text(json.dumps(written))
    assert read_manifest(tmp_path) == CONTENT


def test_what_identifies_the_data_is_the_hash_of_the_manifests_bytes(tmp_path):
    write_manifest(tmp_path, CONTENT)
    assert manifest_sha256(tmp_path) == hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()
    before = manifest_sha256(tmp_path)
    write_manifest(tmp_path, {**CONTENT, "seq_len": 512})
    assert manifest_sha256(tmp_path) != before
