"""Reading the Markdown documents: their lines, blocks, tables and anchors; and what code they can name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("data_prep", "train", "packhaul", "configs", "slurm", "tests", "docs", ".ci")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *(path for name in FOLDERS for path in sorted(ROOT.glob(f"{name}/**/*.md")))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

RECIPE_TABLES = {
    "recipe key": recipe.Recipe,
    "source key": recipe.Source,
    "`filters` key": recipe.Filters,
    "`near_duplicates` key": recipe.NearDuplicates,
    "`decontaminate` key": recipe.Decontaminate,
}


@dataclass(frozen=True)
class Line:
    """A line outside of fenced blocks."""

    number: int
    text: str

    def spans(self) -> list[str]:
        """What stands in backticks."""
        return re.findall(r"`([^`]+)`", self.text)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    number: int  # of its first line
    language: str
    text: str


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells, and the head of its first column."""

    number: int
    kind: str
    cells: list[str]

    def names(self) -> list[str]:
        """What the first cell has in backticks."""
        return re.findall(r"`([^`]+)`", self.cells[0])


def read(path: Path) -> tuple[list[Line], list[Block]]:
    """The lines outside of fenced blocks, and the blocks."""
    lines, blocks, block = [], [], None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if text.startswith("```"):
            if block:
                blocks.append(Block(block[0], block[1], "\n".join(block[2])))
            block = None if block else (number + 1, text[3:].strip(), [])
        elif block:
            block[2].append(text)
        else:
            lines.append(Line(number, text))
    assert block is None, f"{path}: a fenced block is not closed"
    return lines, blocks


def rows(path: Path) -> Iterator[Row]:
    """The rows of all tables."""
    kind = None
    for line in read(path)[0]:
        if not line.text.startswith("|"):
            kind = None
            continue
        cells = [cell.strip() for cell in line.text.strip().strip("|").split("|")]
        if kind is None:
            kind = cells[0]
        elif not set("".join(cells)) <= set("-: "):
            yield Row(line.number, kind, cells)


def table(kind: str, path: Path | None = None) -> list[Row]:
    """The rows of the tables of a kind, in one document or in all."""
    return [row for document in ([path] if path else DOCUMENTS) for row in rows(document) if row.kind == kind]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found: list[str] = []
    for line in read(path)[0]:
        if heading := re.match(r"#{1,6} +(.+?) *#*$", line.text):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = found.count(slug)
            found.append(f"{slug}-{again}" if again else slug)
    return set(found)


def at(path: Path, number: int) -> str:
    """Where something stands."""
    return f"{path.relative_to(ROOT)}:{number}"


def none(problems: Iterable[str]) -> None:
    """Fail with all of them."""
    text = "\n  ".join(problems)
    assert not text, f"\n  {text}"


# What documents can name.


def module_file(name: str) -> Path | None:
    """The file of a module, or of the module that holds a name: `tests.benchmarks.quickstart`, `data_prep.shards`."""
    for parts in (name.split("."), name.split(".")[:-1]):
        base = ROOT.joinpath(*parts)
        for file in (base.with_suffix(".py"), base / "__main__.py", base / "__init__.py"):
            if file.exists() and (len(parts) > 1 or file.stat().st_size):
                return file if parts == name.split(".") or _defines(file, name.split(".")[-1]) else None
    return None


def _defines(file: Path, name: str) -> bool:
    return bool(re.search(rf"^(def|class) {name}\b|^{name}\b", file.read_text(encoding="utf-8"), re.MULTILINE))


def run_config() -> Any:
    """The module that knows every option of a run."""
    return importlib.import_module("train.config.run_config")


def all_code() -> Iterator[str]:
    """The text of every Python and shell file, but for the tests of the documents."""
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".sh", ".sbatch") and not file.name.startswith("test_docu"):
                yield file.read_text(encoding="utf-8")


def text_of(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")
