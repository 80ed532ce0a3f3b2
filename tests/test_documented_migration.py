"""docs/migration.md names only options of ours that there are, and calls refused only what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packhaul.command import COMMANDS
from tests.support.markdown import RECIPE_TABLES, ROOT, Row, at, module_file, none, rows, run_config

DOCUMENT = ROOT / "docs" / "migration.md"
TOOLS = ("TRL", "Axolotl", "LLaMA-Factory", "ms-swift", "open-instruct")
STATUSES = ("same", "other name", "better", "missing", "refused")
OTHERS = {"WANDB_PROJECT"}  # variables of other programs
OTHERS |= {"#", "loss_SOURCE"}
TYPED = {f"packhaul {name}" for name in COMMANDS}


def ours(row: Row) -> list[str]:
    """The names in the second cell, without their values."""
    return [span.partition(":")[0] for span in re.findall(r"`([^`]+)`", row.cells[1])]


def lines_of(*statuses: str) -> Iterator[Row]:
    yield from (row for row in rows(DOCUMENT) if row.kind in TOOLS and row.cells[2] in statuses)


def test_each_tool_has_a_table_with_a_status_in_each_line() -> None:
    for tool in TOOLS:
        lines = [row for row in rows(DOCUMENT) if row.kind == tool]
        assert len(lines) > 20, tool
        none(at(DOCUMENT, row.number) for row in lines if len(row.cells) != 4 or row.cells[2] not in STATUSES)


def test_what_is_written_here_exists_and_is_not_refused() -> None:
    from train.config.refused_options import REFUSALS

    known = set(run_config().known_options()) - set(REFUSALS)
    known |= {name for model in RECIPE_TABLES.values() for name in model.model_fields}
    known |= {file.stem for file in (ROOT / "configs/accelerate").glob("*.yaml")} | OTHERS | TYPED
    named = [(row.number, name) for row in lines_of(*STATUSES) for name in ours(row) if not name.startswith("--")]
    assert len(named) > 100
    none(f"{at(DOCUMENT, n)}: {name}" for n, name in named if name not in known and not module_file(name))


def test_spans_of_the_remarks_exist() -> None:
    """What a remark shows as code is ours as well."""
    from data_prep.recipe import Recipe, Source

    known = set(run_config().known_options()) | set(Recipe.model_fields) | set(Source.model_fields) | OTHERS
    known |= {file.stem for file in (ROOT / "configs/accelerate").glob("*.yaml")}
    values = {"split", "drop", "truncate", "[all-linear]"}  # of too_long and lora_target_modules
    for row in lines_of(*STATUSES):
        for span in re.findall(r"`([^`]+)`", row.cells[3]):
            name = span.partition(":")[0]
            command = " ".join(name.split()[:2])
            is_ours = name in known | values or command in TYPED or name.startswith("--") or module_file(name)
            assert is_ours, f"{at(DOCUMENT, row.number)}: {span}"


def test_same_is_the_same_name_and_the_rest_says_why() -> None:
    none(at(DOCUMENT, row.number) for row in lines_of("same") if row.names() != ours(row))
    none(at(DOCUMENT, row.number) for row in lines_of("other name") if not ours(row))
    none(at(DOCUMENT, row.number) for row in lines_of("refused") if not row.cells[3])


def test_options_of_trl_that_are_called_refused_are() -> None:
    """And no other of them."""
    from train.config.refused_options import REFUSALS, RENAMED

    for row in rows(DOCUMENT):
        if row.kind == "TRL":
            is_refused = [name in REFUSALS or name in RENAMED for name in row.names()]
            assert all(is_refused) if row.cells[2] == "refused" else not any(is_refused), at(DOCUMENT, row.number)
