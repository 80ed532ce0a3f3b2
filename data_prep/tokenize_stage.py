"""Stage 1, parallel: slices of a source's rows -> token ids, labels and an index, one part per slice (see parts.py)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data_prep.chat_templates import load_tokenizer, resolve_chat_template
from data_prep.conversation import BadRow, Conversation
from data_prep.decontamination import evaluation_index
from data_prep.description import Described
from data_prep.filters import check, check_trained_tokens
from data_prep.labelling import TokenizedExample
from data_prep.languages import LANGUAGES, detect_conversation
from data_prep.long_rows import fit
from data_prep.parts import Part, PartWriter
from data_prep.pii import mask_conversation
from data_prep.readers import RawRow, Slice, read_slice
from data_prep.recipe import Recipe, Source
from data_prep.rendering import Renderer
from data_prep.sources import to_conversation

_SAMPLED_PLACES, _SAMPLED_ROWS = 8, 64
ROWS_PER_CALL = 8192  # rows rendered in one call; the renderer encodes less at once where they are long


def make_renderer(recipe: Recipe) -> Renderer:
    """The recipe's tokenizer and template, checked on a probe conversation."""
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.tokenizer_revision)
    template = resolve_chat_template(recipe.chat_template, tokenizer)
    tokenizer.chat_template = template.text  # what is saved with the shards is what rendered them
    return Renderer(
        tokenizer,
        template,
        control_tokens=recipe.control_tokens,
        train_on=recipe.train_on,
        reasoning=recipe.reasoning,
    )


def sample(slices: dict[str, list[Slice]], recipe: Recipe) -> list[Conversation]:
    """Some conversations from places all over each source."""
    chosen = []
    for source in recipe.sources:
        mine = slices[source.name]
        for piece in mine[:: max(1, len(mine) // _SAMPLED_PLACES)]:
            rows = islice(read_slice(source, piece), _SAMPLED_ROWS)
            chosen += [c for raw in rows if isinstance(c := _convert(raw, source, recipe), Conversation)]
    return chosen


def tokenize_part(part: Part, how: tuple[Recipe, Renderer, dict[str, Described]]) -> None:
    """Tokenize one slice and write its part.

    Args:
        how: the recipe, what renders, and which rows are described, by source.

    Raises:
        ValueError: a row cannot be used and the recipe says to refuse.
    """
    recipe, renderer, described = how
    source = next(s for s in recipe.sources if s.name == part.slice.source)
    writer = PartWriter(renderer.encoder.name, described[source.name], near_duplicates=recipe.near_duplicates)
    writer.unseen = set(source.columns.values())
    rows = read_slice(source, part.slice)
    while batch := list(islice(rows, ROWS_PER_CALL)):
        for raw in batch if writer.unseen else ():
            writer.unseen.difference_update(() if isinstance(raw.value, BadRow) else raw.value)
        for raw, conversation, result, is_masked in _render(batch, source, recipe, renderer):
            before = writer.kept
            _take(raw, conversation, result, source, recipe, renderer, writer)
            if is_masked and writer.kept > before:
                writer.changed["masked"] += 1
    writer.write(part)


def _render(
    batch: list[RawRow], source: Source, recipe: Recipe, renderer: Renderer
) -> Iterator[tuple[RawRow, Conversation | None, TokenizedExample | BadRow, bool]]:
    """Each row, its conversation and what became of it, and whether something in it was masked."""
    checked = _decontaminated([_convert(raw, source, recipe) for raw in batch], recipe)
    converted = [_masked(c, recipe) for c in checked]
    rendered = iter(renderer.render([c for c, _ in converted if isinstance(c, Conversation)]))
    for raw, (c, is_masked) in zip(batch, converted, strict=True):
        yield (raw, c, next(rendered), is_masked) if isinstance(c, Conversation) else (raw, None, c, False)


def _convert(raw: RawRow, source: Source, recipe: Recipe) -> Conversation | BadRow:
    """The row's conversation, if the filters let it pass."""
    separator = "\n\n### Input:\n" if recipe.chat_template == "alpaca" else "\n\n"
    options = source.filters or recipe.filters
    try:
        conversation = to_conversation(source, raw, input_separator=separator)
        if options:
            check(conversation, options, LANGUAGES[detect_conversation(conversation)] if options.languages else None)
    except BadRow as bad:
        return bad
    return conversation


def _masked(conversation: Conversation | BadRow, recipe: Recipe) -> tuple[Conversation | BadRow, bool]:
    """Addresses and numbers masked, after decontamination: masks would hide what the rows share."""
    if isinstance(conversation, BadRow) or not recipe.pii:
        return conversation, False
    masked, count = mask_conversation(conversation, frozenset(recipe.pii))
    return masked, count > 0


def _decontaminated(converted: list[Conversation | BadRow], recipe: Recipe) -> list[Conversation | BadRow]:
    """Those that overlap with the evaluation files become bad rows."""
    if recipe.decontaminate is None:
        return converted
    verdicts = iter(evaluation_index(recipe.decontaminate).check([c for c in converted if isinstance(c, Conversation)]))
    return [next(verdicts) or c if isinstance(c, Conversation) else c for c in converted]


def _take(
    raw: RawRow,
    conversation: Conversation | None,
    result: TokenizedExample | BadRow,
    source: Source,
    recipe: Recipe,
    renderer: Renderer,
    writer: PartWriter,
) -> None:
    """Keep the row, in a form that fits, or list it as dropped."""
    try:
        if isinstance(result, BadRow):
            raise result
        assert conversation is not None
        if options := source.filters or recipe.filters:
            check_trained_tokens(result.num_trained, options)
        writer.keep(raw, conversation, fit(conversation, result, recipe.seq_len, recipe.too_long, renderer))
    except BadRow as bad:
        _refuse_if_asked(raw, bad, recipe)
        writer.drop(raw, bad, 0 if isinstance(result, BadRow) else int(result.input_ids.size))


def _refuse_if_asked(raw: RawRow, bad: BadRow, recipe: Recipe) -> None:
    key = "too_long" if bad.reason == "too_long" else "bad_rows"
    if getattr(recipe, key) == "refuse":
        raise ValueError(
            f"{raw.where}: {bad.reason}: {bad.detail}. The recipe says `{key}: refuse`; repair the row, or set "
            f"`{key}: {'drop' if key == 'too_long' else 'skip'}` to count it and go on"
        )
