"""What a plan refuses: sources without a usable row, nothing to train on, names that no row has."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.recipe import Recipe, Source, group_by, grouping_column
from data_prep.stages.parts import Part, PartCounts
from data_prep.stages.plan_notes import first_dropped


def refuse_empty_sources(parts: list[Part], counts: list[PartCounts], recipe: Recipe) -> None:
    """Raises ValueError for a source of which no row can be used."""
    for source in recipe.sources:
        mine = [number for number, part in enumerate(parts) if part.slice.source == source.name]
        if not any(counts[number]["documents"] for number in mine):
            own, those = [parts[number] for number in mine], [counts[number] for number in mine]
            raise ValueError(
                f"not one row of source {source.name!r} can be used: {_losses(own, those)}\n{_listed(those)}\n  See "
                f"{parts[0].folder.parent}/tokenize-*/{source.name}-*.dropped for each row's reason; check `form`, "
                "`columns` and `filters`, or take the source out of the recipe"
            )


def refuse_nothing_to_train(parts: list[Part], counts: list[PartCounts]) -> None:
    """Raises ValueError."""
    raise ValueError(
        f"no document is left to train on: {_losses(parts, counts)}. The dropped rows lie in {parts[0].folder}"
        + "".join(f"\n{listed}" for listed in [_listed(counts)] if listed)
    )


def refuse_unseen_columns(parts: list[Part], counts: list[PartCounts], recipe: Recipe) -> None:
    """A misspelt optional column, such as that of the system prompt, would be left out of every row."""
    for source in recipe.sources:
        own = [set(c["unseen"]) for part, c in zip(parts, counts, strict=True) if part.slice.source == source.name]
        unseen = set.intersection(*own)
        for column in grouping_column(group_by(source, recipe)):
            if column in unseen:
                raise ValueError(
                    f"source {source.name!r}: `group_by` names column {column!r}, but not one of its rows has that "
                    "column: correct the name, or give this source a `group_by` of its own"
                )
        for name, given, what in _named_by(source):
            if name in unseen:
                _refuse_or_say(source, given, what)


def _refuse_or_say(source: Source, given: str, what: str) -> None:
    said = f"source {source.name!r}: {given}, but not one of its"
    if source.first is None:
        raise ValueError(f"{said} rows has that {what}: correct the name, or take it out")
    print(f"{said} `first` {source.first} rows has that {what}")


def _named_by(source: Source) -> Iterator[tuple[str, str, str]]:
    """(name as a part lists it, how the recipe gives it, what it is) of what some row has to have."""
    for key, column in source.columns.items():
        yield column, f"`columns` gives {column!r} for {key}", "column"
    for key, name in source.message_keys.items():
        yield f"messages[].{name}", f"`message_keys` gives {name!r} for {key}", "key"
    for name in source.placeholders:
        yield f"{{{{{name}}}}}", f"`placeholders` gives {name!r} a value", "placeholder"


def _listed(counts: list[PartCounts]) -> str:
    return "\n".join(f"  {reason}: {first}" for reason, first in sorted(first_dropped(counts).items()))


def _losses(parts: list[Part], counts: list[PartCounts]) -> str:
    pairs = zip(parts, counts, strict=True)
    return "; ".join(f"{part.slice.source}: {c['rows']} rows, dropped {c['dropped']}" for part, c in pairs)
