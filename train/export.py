"""Entry: export a run or a checkpoint as a Hugging Face folder.

    packhaul export --checkpoint RUN_DIR_OR_CHECKPOINT --output DIR

The folder holds safetensors, the tokenizer of the shards with the chat template for serving, and a generation config
that stops at every token that ends an answer. Plain AutoModelForCausalLM and AutoTokenizer load it. It is written under
another name, loaded, proven to be the model that was trained (train/serving/export_proof.py), and renamed last: DIR
exists when it is whole. export.json in it says what was exported from where, and what the proof has found; README.md is
a model card of it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep import secret_texts
from data_prep.command_parser import CommandParser
from data_prep.program_name import refusal, usage_name
from train.checkpoint.shard_files import MODEL
from train.config.flag_types import boolean, positive
from train.run import quiet
from train.run.atomic_files import DIGEST, flush, rename, write_json_atomically, write_text_atomically
from train.run.model_identity import difference, model_digests
from train.serving.export_source import Exported, Shards, check_bytes, find_exported, find_shards, read_json
from train.serving.hub_upload import check_upload, push
from train.serving.model_card import FILE as CARD
from train.serving.model_card import UNKNOWN, CardSources, Licence, model_card, read_evaluations

if TYPE_CHECKING:
    from train.serving.adapters import Base
    from train.serving.export_proof import HeldOut, Prover

RECORD = "export.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
VERSIONED = ("packhaul", "torch", "transformers", "trl", "peft", "deepspeed", "safetensors")


def main(arguments: list[str] | None = None) -> None:
    """Command line; prints what is exported and where it is, or one error line and exit code 2."""
    options = _parse(arguments)
    quiet.set_up()
    try:
        exported = find_exported(Path(options.checkpoint), best=options.best)
        output = Path(options.output)
        _refuse_existing(output)
        licence = Licence(options.license, options.license_name, options.license_link)
        licence.check()
        if options.push_to_hub:
            check_upload(options.push_to_hub, private=options.private)
        print(f"exporting {exported.name} of {exported.run_dir} (step {exported.checkpoint.step})")
        export(
            exported,
            output,
            data=options.data,
            base_model=options.base_model,
            keep_adapter=options.keep_adapter,
            tolerance=options.tolerance,
            licence=licence,
        )
        if licence.license == UNKNOWN:
            print("note: the licence in README.md is unknown: say which with --license, such as --license apache-2.0")
        print(f'exported to {output}; ask it something: packhaul generate --model {output} --prompt "..."')
        if options.push_to_hub:
            print(f"pushed to {push(output, options.push_to_hub, private=options.private)}")
    except ValueError as error:
        raise refusal("train.export", error) from None


def export(
    exported: Exported,
    output: Path,
    *,
    data: str | None,
    base_model: str | None,
    keep_adapter: bool,
    tolerance: float | None = None,
    licence: Licence = Licence(),  # noqa: B008  (immutable)
) -> None:
    """Write the export to `output`, which must not exist yet or be empty.

    Args:
        data: the shard directory, if not where run.json says.
        base_model: of a LoRA checkpoint, its base model, if not where the adapter says.
        keep_adapter: leave a LoRA adapter as it is.
        tolerance: see export_proof.Prover.
        licence: what README.md says of it.

    Raises:
        ValueError: what is missing, or a check that the result fails; `output` is then not there.
    """
    from train.serving.adapters import find_base
    from train.serving.export_proof import Prover

    base = find_base(exported.checkpoint, exported.run, base_model)
    _check_options(exported, base, base_model, keep_adapter)
    shards, why_not = find_shards(exported, data)
    held_out, why_not = _held_out(shards, why_not)
    check_bytes(exported.checkpoint)
    folder = _fresh(output.with_name(f".{output.name}.incomplete"))
    prover = Prover(held_out)
    with _orderly_on_a_full_disk(folder):
        _write(exported, folder, base, prover, shards, tolerance, why_not, keep_adapter, (output.name, licence))
    if output.exists():
        output.rmdir()  # empty, or it would have been refused
    rename(folder, output)


@contextlib.contextmanager
def _orderly_on_a_full_disk(folder: Path) -> Iterator[None]:
    """Remove what was half written, and say what to do."""
    try:
        yield
    except Exception as error:  # safetensors has an error of its own, with the number in its text
        if getattr(error, "errno", None) not in _NO_SPACE and not any(
            f"os error {n})" in str(error) for n in _NO_SPACE
        ):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free / 2**30
        raise ValueError(
            f"{folder.parent} has no space for the export: {error}. {free:.2f} GiB are free there; what is exported is "
            "unchanged: make space, or choose another --output, and run the same command again"
        ) from None


def _write(
    exported: Exported,
    folder: Path,
    base: Base | None,
    prover: Prover,
    shards: Shards | None,
    tolerance: float | None,
    why_not: str | None,
    keep_adapter: bool,
    named: tuple[str, Licence],
) -> None:
    """Weights, tokenizer, generation config; the proof; the model card; export.json last."""
    from train.serving import export_tokenizer, export_weights

    saved = exported.checkpoint.path
    how = export_weights.write_weights(saved, folder, base, prover.read_trained, keep_adapter=keep_adapter)
    tokenizer_dir, end_ids = (shards.tokenizer, shards.end_token_ids) if shards else (saved, [])
    export_tokenizer.copy_tokenizer(tokenizer_dir, folder)
    end_ids = end_ids or export_tokenizer.end_token_ids(tokenizer_dir)
    config = export_tokenizer.write_generation_config(folder, end_ids)
    export_weights.check_loads(folder, prover.read_exported, **(base.load_arguments if base and keep_adapter else {}))
    proof = _prove(prover, tolerance, why_not)
    record = _record(exported, how, config["eos_token_id"])
    _write_card(exported, folder, record, proof, shards, named)
    write_json_atomically(folder / RECORD, {**record, **_written(folder), "proof": proof})


def _write_card(
    exported: Exported,
    folder: Path,
    record: dict[str, Any],
    proof: dict[str, Any],
    shards: Shards | None,
    named: tuple[str, Licence],
) -> None:
    sources = CardSources(
        name=named[0],
        record=record,
        proof=proof,
        run=exported.run,
        state=read_json(exported.checkpoint.path / "trainer_state.json"),
        manifest=dict(shards.manifest) if shards else {},
        licence=named[1],
        evaluations=read_evaluations(exported.run_dir, exported.checkpoint.step),
    )
    write_text_atomically(folder / CARD, secret_texts.hide(model_card(sources)))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog=usage_name("train.export"), description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run directory, or one checkpoint-N in it")
    add("--output", required=True, metavar="DIR", help="the new folder; must not exist, or be empty")
    add("--best", action="store_true", help="of a run, the best checkpoint by metric_for_best_model")
    add("--data", metavar="DIR", help="the shard directory, if it is not where run.json says")
    add("--base_model", metavar="DIR_OR_ID", help="LoRA: the base model, if it is not where the adapter says")
    add("--keep_adapter", action="store_true", help="LoRA: do not merge; the result needs its base model and peft")
    add("--tolerance", type=positive, metavar="NATS", help="largest difference that counts as rounding")
    group = parser.add_argument_group("model card and hub").add_argument
    group("--license", default=UNKNOWN, metavar="ID", help="of the model, as the hub names it: apache-2.0, mit, other")
    group("--license_name", metavar="NAME", help="of --license other")
    group("--license_link", metavar="URL", help="where its text is")
    group("--push_to_hub", metavar="REPO_ID", help="upload afterwards, with HF_TOKEN or the login of `hf auth login`")
    group("--private", type=boolean, nargs="?", const=True, metavar="true|false", help="of a new repository: true")
    options = parser.parse_args(arguments)
    if options.private is not None and not options.push_to_hub:
        parser.error("--private does nothing without --push_to_hub")
    options.private = options.private is not False
    return options


def _check_options(exported: Exported, base: Base | None, base_model: str | None, keep_adapter: bool) -> None:
    """Refuse an option that does nothing, and report a base model that was replaced but is not needed."""
    path = exported.checkpoint.path
    if base is None and (keep_adapter or base_model):
        option = "--keep_adapter" if keep_adapter else "--base_model"
        raise ValueError(f"{option} needs a LoRA checkpoint; {path} has no adapter_config.json: leave the option out")
    if base and base.digests is None:
        print(f"note: nothing records which model the adapter was trained on; taking {base.path}")
    if base and base.quantisation and keep_adapter:
        print(f"note: the adapter was trained over weights quantised by {base.quantisation}: load its base model so")
    if base is None:
        _report_other_base(exported)


def _report_other_base(exported: Exported) -> None:
    model, options = exported.run.get("model_name_or_path"), exported.run.get("options") or {}
    now = model_digests(model, options.get("model_revision")) if model else None
    if other := difference(exported.base_digests, now):
        print(f"note: {model} is not the model that the run began from: it has {other}. The export does not need it")


def _held_out(shards: Shards | None, why_not: str | None) -> tuple[HeldOut | None, str | None]:
    """The documents of the proof, or why there are none."""
    from train.serving.export_proof import choose_documents

    if shards is None:
        return None, why_not
    try:
        return choose_documents(shards.path, shards.manifest), None
    except ValueError as error:
        return None, str(error)


def _prove(prover: Prover, tolerance: float | None, why_not: str | None) -> dict[str, Any]:
    """What export.json says of the proof; prints it."""
    proof = prover.proof(tolerance)
    if proof is None:
        print(f"WARNING: NOT PROVEN to be the model that was trained: {why_not}. Give the shards with --data")
        return {"run": False, "why": re.sub(r"/\S*/(?=\S)", "", str(why_not))}  # without paths of this machine
    print(proof.sentence())
    if proof.is_weak:
        print(
            f"note: without the adapter they differ by {proof.adapter_effect:.1e}: it does so little that this cannot "
            "tell the export from the base model"
        )
    return proof.as_json()


def _record(exported: Exported, how: str, end_ids: list[int]) -> dict[str, Any]:
    """What was exported from where. Absolute paths of this machine stay out."""
    run, checkpoint = exported.run, exported.checkpoint
    model = run.get("model_name_or_path")
    weights = {name: record for name, record in checkpoint.files.items() if _is_read(name)}
    return {
        "run": exported.run_dir.name,
        "source": exported.name,
        "step": checkpoint.step,
        "weights": how,
        "model_name_or_path": Path(model).name if model and Path(model).is_absolute() else model,
        "base_model": exported.base_digests,
        "manifest_sha256": run.get("manifest_sha256") or checkpoint.extra.get("manifest_sha256"),
        "git_commit": run.get("git_commit"),
        "end_token_ids": end_ids,
        "versions": _versions(),
        "digest": DIGEST,
        "source_digests": {name: record.digest for name, record in sorted(weights.items())},
    }


def _written(folder: Path) -> dict[str, Any]:
    """The files of the export, with sizes and digests; forces them to disk."""
    written = flush(p for p in sorted(folder.rglob("*")) if p.is_file())
    files = {path.relative_to(folder).as_posix(): record for path, record in written.items()}
    sizes = {name: record.size for name, record in files.items()}
    return {"files": sizes, "digests": {name: record.digest for name, record in files.items()}}


def _is_read(name: str) -> bool:
    """Whether a file of a checkpoint holds weights."""
    return name.endswith((".safetensors", ".pt")) or name.startswith(f"{MODEL}/")


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


if __name__ == "__main__":
    main()
