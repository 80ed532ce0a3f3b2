"""The memory page in the head comment of each run config, made by preflight on the model's shape, without the hub.

    python -m tests.support.recipe_pages [NAME ...]    # or `make recipes`: writes those that are out of date

A head comment holds the command of the page and the data that it is for; what follows them, indented, is the page.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from data_prep.atomic_files import to_json
from data_prep.shards import MANIFEST
from data_prep.strict_files import read_yaml
from tests.support.preflight_files import write_shards

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "configs" / "train"
SHAPES = Path(__file__).with_name("model_configs")  # config.json of each model, named as its hub id
_COMMAND = re.compile(r"^#   (packhaul preflight (?:.*\\\n#)*.* --gpu_memory_gib .*)$", re.MULTILINE)
_DATA = re.compile(r"^# on ([\d,]+) tokens in rows of ([\d,]+), documents of ([\d,]+), half of them trained:$", re.M)
_PAGE = re.compile(r"(?:^#\n)?((?:^#   .*\n)*)", re.MULTILINE)
_LEFT_OUT = ("launch ", "model ", "data ", "disk ", "checkpoints ", "preflight: ")  # what is not about the hardware


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a page is made for."""

    tokens: int
    seq_len: int
    document: int  # tokens of each


def has_page(file: Path) -> bool:
    """Whether its head comment asks for one."""
    return bool(_COMMAND.search(file.read_text(encoding="utf-8")))


def command_of(file: Path) -> list[str]:
    """The flags of preflight, in the head comment."""
    found = _COMMAND.search(file.read_text(encoding="utf-8"))
    assert found, f"{file}: no command of its page"
    return shlex.split(found[1].replace("\\\n#", " "))[2:]


def data_of(file: Path) -> Data:
    """What its page says of the data."""
    found = _DATA.search(file.read_text(encoding="utf-8"))
    assert found, f"{file}: no line 'on N tokens in rows of N, ...' before its page"
    tokens, seq_len, document = (int(number.replace(",", "")) for number in found.groups())
    return Data(tokens=tokens, seq_len=seq_len, document=document)


def shown(file: Path) -> list[str]:
    """The page in the file."""
    text = file.read_text(encoding="utf-8")
    page = _PAGE.match(text, _after_data(text))
    assert page
    return [line.removeprefix("#   ") for line in page[1].splitlines()]


def made(file: Path, *, memory: bool = True) -> list[str]:
    """The page as preflight prints it today: without what depends on this machine, and with its notes on memory.

    Args:
        memory: False leaves out memory and hours, which take seconds.
    """
    from train.preflight import main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = command_of(file)
        flags = [
            *(command if memory else _without_hardware(command)),
            "--data",
            str(_shards(folder / "shards", data_of(file))),
        ]
        flags += ["--model_name_or_path", str(_model(folder / "model", file)), "--output_dir", str(folder / "run")]
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main(flags)
        assert code == 0, f"{file}: {errors.getvalue()}"
    return [_without_this_machine(line) for line in out.getvalue().splitlines() if _belongs(line)]


def write(file: Path) -> bool:
    """Put the page of today into the file; whether it is another one."""
    text, page = file.read_text(encoding="utf-8"), made(file)
    old = _PAGE.match(text, _after_data(text))
    assert old
    lines = "".join(f"#   {line}".rstrip() + "\n" for line in page)
    new = f"{text[: old.start()]}#\n{lines}{text[old.end() :]}"
    if new == text:
        return False
    file.write_text(new, encoding="utf-8")
    return True


def _after_data(text: str) -> int:
    found = _DATA.search(text)
    assert found
    return found.end() + 1


def _without_hardware(command: list[str]) -> list[str]:
    words = dict(zip(command[::2], command[1::2], strict=True))
    processes = int(words["--nodes"]) * int(words["--gpus_per_node"])
    kept = [word for flag in ("--config", "--accelerate_config") for word in (flag, words[flag])]
    return [*kept, "--num_processes", str(processes)]


def _belongs(line: str) -> bool:
    return not line.startswith(_LEFT_OUT) and not (line.startswith("note: ") and "memory" not in line)


def _without_this_machine(line: str) -> str:
    return line.partition("; ")[0] if line.startswith("checkpoint ") else line


def _shards(folder: Path, data: Data) -> Path:
    """A manifest of this size; preflight reads no row."""
    write_shards(folder, rows=1, seq_len=data.seq_len)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    rows = -(-data.tokens // data.seq_len)
    numbers = {"rows": rows, "documents": data.tokens // data.document, "tokens": data.tokens}
    manifest["splits"]["train"] |= {**numbers, "trained_tokens": data.tokens // 2}
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return folder


def _model(folder: Path, file: Path) -> Path:
    """A folder with the model's config, and a file of weights with nothing in it."""
    from safetensors.numpy import save_file

    options, _ = read_yaml(file)
    folder.mkdir()
    (folder / "config.json").write_bytes(shape_file(options["model_name_or_path"]).read_bytes())
    save_file({}, folder / "model.safetensors")
    return folder


def shape_file(model: str) -> Path:
    """Where the config of a hub id is."""
    return SHAPES / f"{model.replace('/', '--')}.json"


def main() -> int:
    """Write the pages that are out of date."""
    names = set(sys.argv[1:])
    for file in sorted(TRAIN.glob("*.yaml")):
        if has_page(file) and (not names or file.stem in names):
            print(f"{file.relative_to(ROOT)}: {'written' if write(file) else 'as it was'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
