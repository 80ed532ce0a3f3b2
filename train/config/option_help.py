"""The text of `--help`: every option with its type, default and help, without importing the libraries."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

from train.config.own_options import OWN_DEFAULTS, PACKED_ROWS, REQUIRED, known_options
from train.config.refused_options import REFUSALS


def help_text(command: str, extra: str = "") -> str:
    """Usage and every option with its type, default and help, grouped by the class that declares it.

    Args:
        command: what the usage line begins with.
        extra: lines about the command's own flags.
    """
    lines = [f"usage: {command} --config configs/train/X.yaml [--option value ...]", ""]
    lines += [extra.rstrip(), ""] if extra else []
    lines += ["Options, in the file or as flags (a flag wins). Lists: --name a b c. Mappings: as JSON.", ""]
    titles = {
        "OwnOptions": "packhaul's own options",
        "ModelConfig": "The model: trl's ModelConfig",
        "SFTConfig": "Supervised fine-tuning: trl's SFTConfig",
        "TrainingArguments": "Training: transformers' TrainingArguments, with trl's defaults",
    }
    for group, title in titles.items():
        lines += [f"{title}:", *_group_help(group), ""]
    lines += ["Not usable here:", *(_entry(f"--{name}", f"{r.reason}.") for name, r in REFUSALS.items())]
    return "\n".join(lines)


def _group_help(group: str) -> Iterator[str]:
    changed = {**OWN_DEFAULTS, **PACKED_ROWS}
    for name, option in known_options().items():
        if option.declared_in == group and name not in REFUSALS:
            default = "" if name in REQUIRED else f" (default: {changed.get(name, option.default)!r})"
            yield _entry(f"--{name} {option.type_text}", f"{option.help}{default}")


def _entry(head: str, text: str) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    return f"  {head}\n" + textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
