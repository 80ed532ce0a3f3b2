"""Entry: a run or a checkpoint in, a Hugging Face folder out.

    python -m train.export --checkpoint RUN_DIR_OR_CHECKPOINT --output DIR

The folder holds safetensors, the tokenizer of the shards with the chat template for serving, and a generation config
that stops at every token that ends an answer. Plain AutoModelForCausalLM and AutoTokenizer load it. It is written under
another name, loaded and checked, and renamed last: DIR exists when it is whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.checkpoint import (
    MARKER,
    Checkpoint,
    flush,
    is_checkpoint_name,
    newest_complete,
    read,
    rename,
    write_json_atomically,
)

RECORD = "export.json"
VERSIONED = ("packhaul", "torch", "transformers", "trl", "peft", "deepspeed", "safetensors")


@dataclass(frozen=True)
class Source:
    """What is exported."""

    checkpoint: Checkpoint
    run_dir: Path
    run: dict[str, Any]  # run.json, empty when there is none

    @property
    def name(self) -> str:
        """`final`, or the checkpoint's name."""
        return "final" if self.checkpoint.path == self.run_dir else self.checkpoint.path.name


def main(arguments: list[str] | None = None) -> None:
    """Command line; prints what is exported and where it is, or one error line and exit code 1."""
    options = _parse(arguments)
    try:
        source = find_source(Path(options.checkpoint), best=options.best)
        output = Path(options.output)
        _refuse_existing(output)
        if options.push_to_hub:
            _require_login()
        print(f"exporting {source.name} of {source.run_dir} (step {source.checkpoint.step})")
        export(source, output, data=options.data, base_model=options.base_model, keep_adapter=options.keep_adapter)
        print(f'exported to {output}; ask it something: python -m train.generate --model {output} --prompt "..."')
        if options.push_to_hub:
            print(f"pushed to {push(output, options.push_to_hub, private=options.private)}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def find_source(path: Path, *, best: bool) -> Source:
    """What `path` stands for: a checkpoint itself, or of a run the final model, its best or its newest checkpoint.

    Raises:
        ValueError: no such folder, nothing complete in it, or no best one known.
    """
    path = path.resolve()
    if not path.is_dir():
        raise ValueError(f"--checkpoint {path}: expected a run directory or a checkpoint, found no such folder")
    if is_checkpoint_name(path.name):
        if best:
            raise ValueError(f"--best chooses within a run directory; {path} is one checkpoint: give {path.parent}")
        return Source(read(path), path.parent, _read_json(path.parent / "run.json"))
    chosen = _best(path) if best else _final_or_newest(path)
    return Source(chosen, path, _read_json(path / "run.json"))


def export(source: Source, output: Path, *, data: str | None, base_model: str | None, keep_adapter: bool) -> None:
    """Write the export to `output`, which must not exist yet or be empty.

    Args:
        data: the shard directory, if not where run.json says.
        base_model, keep_adapter: see export_weights.write_weights.

    Raises:
        ValueError: what is missing, or a check that the result fails; `output` is then not there.
    """
    from train import export_tokenizer, export_weights

    folder = _fresh(output.with_name(f".{output.name}.incomplete"))
    saved = source.checkpoint.path
    how = export_weights.write_weights(saved, folder, base_model=base_model, keep_adapter=keep_adapter)
    tokenizer_dir, end_ids = _tokenizer_source(source, data)
    export_tokenizer.copy_tokenizer(tokenizer_dir, folder)
    end_ids = end_ids or export_tokenizer.end_token_ids(tokenizer_dir)
    config = export_tokenizer.write_generation_config(folder, end_ids)
    export_weights.check_loads(folder)
    write_json_atomically(folder / RECORD, _record(source, folder, how, config["eos_token_id"]))
    if output.exists():
        output.rmdir()  # empty, or it would have been refused
    flush(p for p in folder.rglob("*") if p.is_file())
    rename(folder, output)


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload `folder` with the hub's own login (`hf auth login` or HF_TOKEN); the address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by packhaul")
    return str(address)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run directory, or one checkpoint-N in it")
    add("--output", required=True, metavar="DIR", help="the new folder; must not exist, or be empty")
    add("--best", action="store_true", help="of a run, the best checkpoint by metric_for_best_model")
    add("--data", metavar="DIR", help="the shard directory, if it is not where run.json says")
    add("--base_model", metavar="DIR_OR_ID", help="LoRA: the base model, if it is not where the adapter says")
    add("--keep_adapter", action="store_true", help="LoRA: do not merge; the result needs its base model and peft")
    add("--push_to_hub", metavar="ID", help="upload there afterwards, with the hub's own login")
    add("--private", action="store_true", help="make the hub repository private")
    options = parser.parse_args(arguments)
    if options.private and not options.push_to_hub:
        parser.error("--private does nothing without --push_to_hub")
    return options


def _final_or_newest(run_dir: Path) -> Checkpoint:
    final = read(run_dir) if (run_dir / MARKER).exists() else None
    newest = newest_complete(run_dir, print)
    # A run that went on after its end has checkpoints newer than the final model it once wrote.
    if final and (newest is None or final.step >= newest.step):
        return final
    if newest:
        print(f"{run_dir} has no final model yet: taking its newest complete checkpoint")
        return newest
    raise ValueError(f"{run_dir}: expected a final model or a complete checkpoint-N, found neither: train first")


def _best(run_dir: Path) -> Checkpoint:
    newest = newest_complete(run_dir, print)
    state = _read_json(newest.path / "trainer_state.json") if newest else {}
    best = state.get("best_model_checkpoint")
    if not best:
        raise ValueError(
            f"{run_dir}: no best checkpoint is recorded: that needs eval_strategy, metric_for_best_model and a "
            "checkpoint saved after an evaluation. Leave --best out to export the final or newest one"
        )
    return read(run_dir / Path(best).name)  # by name: the run may have been moved


def _tokenizer_source(source: Source, data: str | None) -> tuple[Path, list[int]]:
    """The folder of the tokenizer and the ids that end an answer: from the shards, else from the checkpoint's copy."""
    from data_prep.shards import TOKENIZER_DIR, check_tokenizer, manifest_sha256, read_manifest

    shards = data or source.run.get("data")
    trained_on = source.run.get("manifest_sha256") or source.checkpoint.extra.get("manifest_sha256")
    try:
        if not shards:
            raise ValueError(f"{source.run_dir} has no run.json that names the shards")
        manifest = read_manifest(shards)
        found = manifest_sha256(shards)
        if trained_on and found != trained_on:
            raise ValueError(f"{shards} is other data than the run's (manifest {found[:12]}, run {trained_on[:12]})")
        if damaged := check_tokenizer(shards, manifest):
            raise ValueError("; ".join(damaged))
    except ValueError as error:
        if data:
            raise
        print(f"{error}: taking the checkpoint's copy of the tokenizer")
        return source.checkpoint.path, []
    return Path(shards) / TOKENIZER_DIR, manifest["end_token_ids"]


def _record(source: Source, folder: Path, how: str, end_ids: list[int]) -> dict[str, Any]:
    """Where the export comes from. Absolute paths of this machine stay out."""
    run, extra = source.run, source.checkpoint.extra
    model = run.get("model_name_or_path")
    return {
        "run": source.run_dir.name,
        "source": source.name,
        "step": source.checkpoint.step,
        "weights": how,
        "model_name_or_path": Path(model).name if model and Path(model).is_absolute() else model,
        "manifest_sha256": run.get("manifest_sha256") or extra.get("manifest_sha256"),
        "git_commit": run.get("git_commit"),
        "end_token_ids": end_ids,
        "versions": _versions(),
        "files": {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()},
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # packhaul itself, when run from a clone
            continue
    return found


def _refuse_existing(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty: name a new folder, or remove it first")


def _fresh(folder: Path) -> Path:
    """The folder, empty: what an earlier export that was cut off left there is removed."""
    if folder.exists():
        print(f"removing what an earlier, incomplete export left in {folder}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _require_login() -> None:
    """Before the long part."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise ValueError(f"--push_to_hub needs a login: run `hf auth login` or set HF_TOKEN. Found: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, found something else ({error})") from None
    return content if isinstance(content, dict) else {}


if __name__ == "__main__":
    main()
