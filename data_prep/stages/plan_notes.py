"""What a plan says of its sources: what was not read, rows without a group, the first row of each reason to drop."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.recipe import Recipe, group_by, grouping_column
from data_prep.shards import PlannedSource
from data_prep.sources.cells import names
from data_prep.stages.parts import Part, PartCounts

_MANY = 10  # one row in this many, dropped, is said


def unread_notes(parts: list[Part], counts: list[PartCounts], recipe: Recipe) -> Iterator[str]:
    """What the rows of each source hold and nothing reads, wherever in the source it was found."""
    for source in recipe.sources:
        own = [c for part, c in zip(parts, counts, strict=True) if part.slice.source == source.name]
        grouping = grouping_column(group_by(source, recipe))
        if unread := [name for name in dict.fromkeys(n for c in own for n in c["unread"]) if name not in grouping]:
            yield unread_note(source.name, unread)


def unread_note(source: str, unread: list[str]) -> str:
    """What holds something and is not read, and which key of the recipe would read it."""
    in_messages = [name.startswith("messages[]") for name in unread]
    keys = [*(["`columns`"] if not all(in_messages) else []), *(["`message_keys`"] if any(in_messages) else [])]
    return f"source {source}: not read: {names(unread)}; map it with {' or '.join(keys)}, or name it in `ignore`"


def group_notes(parts: list[Part], counts: list[PartCounts], recipe: Recipe) -> list[str]:
    """Sources with rows that lack the column that makes the groups."""
    notes = []
    for source in recipe.sources:
        number = sum(c["ungrouped"] for part, c in zip(parts, counts, strict=True) if part.slice.source == source.name)
        for column in grouping_column(group_by(source, recipe)) if number else []:
            notes.append(
                f"source {source.name}: {number:,} rows have nothing in column {column!r}, which `group_by` names: "
                "they are grouped by their first question"
            )
    return notes


def drop_notes(
    parts: list[Part], counts: list[PartCounts], sources: list[PlannedSource], repeated: dict[str, dict[str, str]]
) -> list[str]:
    """The first of each reason, where more than a tenth of a source is dropped.

    Args:
        repeated: by source and reason, those that the plan has dropped.
    """
    notes = []
    for source in sources:
        number = sum(source["dropped"].values())
        if number * _MANY <= source["rows"]:
            continue
        own = [c for part, c in zip(parts, counts, strict=True) if part.slice.source == source["name"]]
        notes.append(
            f"source {source['name']}: {number:,} of {source['rows']:,} rows are dropped. The first of each reason:"
        )
        found = {**repeated.get(source["name"], {}), **first_dropped(own)}
        notes += [f"  {reason}: {found[reason]}" for reason in source["dropped"] if reason in found]
    return notes


def first_dropped(counts: list[PartCounts]) -> dict[str, str]:
    """By reason: place and detail of the first raw row."""
    found: dict[str, str] = {}
    for one in reversed(counts):
        found |= one["first_dropped"]
    return found
