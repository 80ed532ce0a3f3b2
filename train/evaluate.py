"""Entry: benchmarks of an export by lm-evaluation-harness, with the results next to the report of its run.

    packhaul evaluate --export DIR --tasks TASK,TASK [--run RUN_DIR] [any option of `lm-eval run`]

Needs the extra `evaluate`. The harness runs in a process of its own (--num_processes: in several, each with a copy of
the model), asks through the chat template of the export, and loads it in its own dtype. What it reports goes to
RUN_DIR/evaluation/NAME-stepN-TIME.json, without its samples; those, where --log_samples asks for them, beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from data_prep import secret_texts
from data_prep.command_parser import CommandParser
from data_prep.program_name import refusal, usage_name
from train.config.flag_types import whole_number
from train.run.atomic_files import write_text_atomically
from train.serving.adapters import ADAPTER_CONFIG
from train.serving.export_source import read_json
from train.serving.loaded_models import check_folder

FOLDER = "evaluation"  # in the folder of a run
_FROM_EXPORT = ("run", "source", "step", "manifest_sha256", "weights")  # of export.json
_DROPPED = ("samples", "pretty_env_info", "chat_template")  # large; the template's hash stays


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the harness; 2 after one line where something has to be changed first."""
    options, words = _parse(arguments)
    export = Path(options.export)
    try:
        _check(options)
        folder = Path(options.run or export) / FOLDER
        working = folder / f".{export.name}.incomplete"
        command = harness_command(export, words, working / "results.json", options)
        print(shlex.join(command), flush=True)
        if options.dry_run:
            return 0
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        if code := subprocess.run(command).returncode:
            print(f"lm-eval ended with exit code {code}: see above; nothing is recorded", file=sys.stderr)
            return 1
        print(f"results: {keep_results(export, working, folder, words)}")
    except (ValueError, OSError) as error:
        raise refusal("train.evaluate", error) from None
    return 0


def harness_command(export: Path, words: list[str], results: Path, options: argparse.Namespace) -> list[str]:
    """The command line of the harness.

    Args:
        words: options of `lm-eval run`; a later `--model_args` adds to ours.
        results: where it writes; it puts the time into the name.
    """
    start = [sys.executable, "-m"]
    if options.num_processes > 1:
        start += ["accelerate.commands.launch", "--num_processes", str(options.num_processes), "-m"]
    template = [] if options.no_chat_template or "--apply_chat_template" in words else ["--apply_chat_template"]
    ours = ["--model_args", ",".join(_model_args(export)), *template, "--output_path", str(results)]
    return [*start, "lm_eval", "run", *ours, *words]


def keep_results(export: Path, working: Path, folder: Path, words: list[str]) -> Path:
    """Write what the harness reports to the folder, and move its samples there; the file.

    The file has the harness's own keys (`results` by task and metric, `n-shot`, `versions`, `config`, ...), and
    `export`, `run`, `source`, `step`, `time` and `options` of ours.

    Raises:
        ValueError: it has reported nothing.
    """
    found = sorted(working.glob("results_*.json"))
    if not found:
        raise ValueError(f"{working}: expected results of lm-eval, found none: see its lines above")
    report = {name: value for name, value in read_json(found[-1]).items() if name not in _DROPPED}
    origin = read_json(export / "export.json")
    ours = {"export": export.name, **{name: origin.get(name) for name in _FROM_EXPORT}, "options": words}
    now = time.strftime("%Y%m%d-%H%M%S")
    name = f"{export.name}-step{origin['step']}-{now}" if "step" in origin else f"{export.name}-{now}"
    text = json.dumps({**ours, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **report}, indent=1, ensure_ascii=False)
    for samples in working.glob("samples_*.jsonl"):
        samples.replace(folder / f"{name}-{samples.name}")
    write_text_atomically(folder / f"{name}.json", secret_texts.hide(text) + "\n")
    shutil.rmtree(working, ignore_errors=True)
    return folder / f"{name}.json"


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the words for the harness."""
    parser = CommandParser(prog=usage_name("train.evaluate"), description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--export", required=True, metavar="DIR", help="a folder made by packhaul export")
    add("--run", metavar="RUN_DIR", help="the run that it is of, which takes the results (default: the export itself)")
    add("--num_processes", type=whole_number, default=1, metavar="N", help="copies of the model, each on one GPU")
    add("--no_chat_template", action="store_true", help="ask with the bare text of the tasks, as base models are")
    add("--dry_run", action="store_true", help="check, and print the harness's command")
    options, words = parser.parse_known_args(arguments)
    given = {word.partition("=")[0] for word in words}
    if not given & {"--tasks", "-t", "--config", "-C"}:
        parser.error("nothing to evaluate: give --tasks; `lm-eval ls tasks` lists them")
    if taken := given & {"--output_path", "-o"}:
        parser.error(f"{min(taken)} is set here: --run says where the results go")
    if options.no_chat_template and "--apply_chat_template" in given:
        parser.error("--no_chat_template and --apply_chat_template: leave one of them out")
    return options, words


def _check(options: argparse.Namespace) -> None:
    """What can be told before the harness starts. A dry run may come before the export.

    Raises:
        ValueError: the extra is not installed, or a folder is not what it has to be.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install '.[evaluate]'")
    if not (options.dry_run and not Path(options.export).exists()):
        check_folder(options.export)
    if options.run and not options.dry_run and not (Path(options.run) / "run.json").exists():
        raise ValueError(f"--run {options.run}: expected the folder of a run (run.json), found none")


def _model_args(export: Path) -> list[str]:
    """Of the harness's models hf and vllm; an adapter goes over its base model."""
    config = export / ADAPTER_CONFIG
    named = {"pretrained": str(export)}
    if config.exists():
        base = read_json(config).get("base_model_name_or_path")
        named = {"pretrained": str(base), "peft": str(export), "tokenizer": str(export)}
    if wrong := [path for path in named.values() if "," in path]:
        raise ValueError(f"{wrong[0]}: lm-eval cuts its --model_args at commas: name a folder without them")
    return [*(f"{name}={path}" for name, path in named.items()), "dtype=auto"]


if __name__ == "__main__":
    sys.exit(main())
