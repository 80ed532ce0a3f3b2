"""train.export: what is chosen, what is recorded, what is refused, and that the result answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_runs import add_checkpoint, exported_step, run_export, save_model
from train.checkpoint.folders import MARKER, publish

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_gives_its_final_model_else_its_newest_complete_checkpoint(tiny_run, tiny_model_dir, tmp_path, capsys):
    model = tiny_model_dir("llama")
    for step in (9, 20, 30):
        add_checkpoint(tiny_run, step, model, best=9)
    (tiny_run / "checkpoint-30" / MARKER).unlink()
    run_export(tiny_run, tmp_path / "newest")
    said = capsys.readouterr().out
    assert exported_step(tmp_path / "newest") == 20
    assert "checkpoint-30: no complete.json (the save was cut off, or the file was removed): passed over" in said
    assert "no final model yet: taking its newest complete checkpoint" in said and "exporting checkpoint-20" in said

    run_export(tiny_run, tmp_path / "best", "--best")
    assert exported_step(tmp_path / "best") == 9

    run_export(tiny_run / "checkpoint-9", tmp_path / "nine")
    assert exported_step(tmp_path / "nine") == 9

    save_model(tiny_run, 25, model)
    publish(tiny_run, step=25, world_size=1, extra={})
    run_export(tiny_run, tmp_path / "final")
    assert "exporting final" in capsys.readouterr().out
    assert exported_step(tmp_path / "final") == 25

    add_checkpoint(tiny_run, 40, model)  # the run went on after its end
    run_export(tiny_run, tmp_path / "later")
    assert exported_step(tmp_path / "later") == 40


def test_what_cannot_be_exported_is_refused_with_a_reason(tiny_run, tiny_model_dir, tmp_path):
    def refused(source: Path, *options: str) -> str:
        with pytest.raises(SystemExit) as error:
            run_export(source, tmp_path / "out", *options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "no such folder" in refused(tmp_path / "absent")
    assert "found neither: train first" in refused(tiny_run)
    assert "no best checkpoint is recorded" in refused(tiny_run, "--best")
    folder = add_checkpoint(tiny_run, 5, tiny_model_dir("llama"))
    assert "no best checkpoint is recorded" in refused(tiny_run, "--best")
    assert "--best chooses within a run directory" in refused(folder, "--best")
    assert "--keep_adapter needs a LoRA checkpoint" in refused(folder, "--keep_adapter")
    assert "--base_model needs a LoRA checkpoint" in refused(folder, "--base_model", "x")
    assert "shard directory" in refused(folder, "--data", str(tmp_path / "nowhere"))
    os.truncate(folder / "model.safetensors", 100)
    assert "model.safetensors has 100 bytes" in refused(folder)
    (folder / MARKER).unlink()
    assert "no complete.json (the save was cut off, or the file was removed)" in refused(folder)
    (folder / "model.safetensors").unlink()
    publish(folder, step=5, world_size=1, extra={})
    assert "expected weights" in refused(folder)


def test_the_record_names_the_origin_and_no_path_of_this_machine(tiny_run, tiny_model_dir, tmp_path):
    add_checkpoint(tiny_run, 7, tiny_model_dir("llama"))
    run_export(tiny_run, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["run"], record["source"], record["step"]) == ("run", "checkpoint-7", 7)
    assert (record["model_name_or_path"], record["git_commit"], record["weights"]) == ("base", "0123abc", "copied")
    assert record["manifest_sha256"] == json.loads((tiny_run / "run.json").read_text())["manifest_sha256"]
    assert {"torch", "transformers"} <= record["versions"].keys()
    for path in [*(tmp_path / "out").glob("*.json"), tmp_path / "out" / "README.md"]:
        assert str(tmp_path) not in path.read_text(), path
        assert str(Path.home()) not in path.read_text(), path


def test_without_the_run_s_own_shards_the_checkpoints_tokenizer_is_taken(
    tiny_run, tiny_shards, tiny_model_dir, tmp_path, capsys
):
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    moved = tiny_shards.rename(tmp_path / "moved")
    run_export(tiny_run, tmp_path / "copy")
    assert "taking the checkpoint's copy of the tokenizer" in capsys.readouterr().out
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text())["eos_token_id"] == [3]
    run_export(tiny_run, tmp_path / "data", "--data", str(moved))
    assert "copy of the tokenizer" not in capsys.readouterr().out
    (moved / "manifest.json").write_text((moved / "manifest.json").read_text() + "\n")  # prepared again
    with pytest.raises(SystemExit, match="is other data than the run's"):
        run_export(tiny_run, tmp_path / "other", "--data", str(moved))


def test_an_existing_output_stays_and_a_cut_off_export_is_replaced(tiny_run, tiny_model_dir, tmp_path, capsys):
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    output = tmp_path / "out"
    output.mkdir()
    leftover = tmp_path / ".out.incomplete"
    leftover.mkdir()
    (leftover / "model-00001-of-00002.safetensors").write_text("half")
    run_export(tiny_run, output)  # into an empty folder
    assert "earlier, incomplete export" in capsys.readouterr().out
    assert not leftover.exists() and not (output / "model-00001-of-00002.safetensors").exists()
    before = {p.name: p.stat().st_mtime_ns for p in output.iterdir()}
    with pytest.raises(SystemExit, match="exists and is not empty"):
        run_export(tiny_run, output)
    assert {p.name: p.stat().st_mtime_ns for p in output.iterdir()} == before


def test_a_full_disk_leaves_nothing_half_written(tiny_run, tiny_model_dir, tmp_path):
    add_checkpoint(tiny_run, 5, tiny_model_dir("llama"))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]).returncode:
        pytest.skip("a small tmpfs needs root")
    try:
        with pytest.raises(SystemExit, match=r"has no space for the export: .*28.*run the same command again"):
            run_export(tiny_run, disk / "out")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_help_and_errors_come_before_the_heavy_imports():
    """torch, transformers and peft take seconds to import; asking for help may not."""
    code = (
        "import sys; from train import export\n"
        "try: export.main(sys.argv[1:])\n"
        "except SystemExit as error: print(error)\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'peft', 'deepspeed') if m in sys.modules])"
    )
    for arguments in (["--help"], ["--checkpoint", "/nonexistent", "--output", "x"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr
