"""Stage 1, parallel: makes a part of each slice of raw rows: token ids, labels and an index (see parts.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from data_prep.conversation import BadRow, Conversation
from data_prep.quality.filters import check, check_trained_tokens
from data_prep.quality.languages import LANGUAGES, detect_conversation
from data_prep.quality.pii import mask, mask_conversation
from data_prep.recipe import Recipe, Source, group_by, grouping_column
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.long_rows import fit
from data_prep.rendering.prompted_turns import can_be_split, fit_as_prompted
from data_prep.rendering.reasoning_history import fit_as_served
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.rewrites import MASKED, Rewrite
from data_prep.rendering.row_parts import Served
from data_prep.rendering.tool_use_renderer import renderer_for
from data_prep.sources.evaluation_files import evaluation_index
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.row_forms import RowReader
from data_prep.sources.slices import Slice, read_slice
from data_prep.stages.described_rows import Described
from data_prep.stages.parts import Part, PartWriter
from data_prep.tokenization.tokenizer import load_tokenizer

_SAMPLED_PLACES, _SAMPLED_ROWS = 8, 64
_MEANT = ("left_out", "not_trained")  # the recipe's `transform` or the row itself asks for it
Result = TokenizedExample | Served | BadRow  # a row as one document, as several, or not at all
ROWS_PER_CALL = 8192  # rows rendered in one call; the renderer encodes less at once where they are long


def make_renderer(recipe: Recipe) -> Renderer:
    """The recipe's tokenizer and template, checked on a probe conversation."""
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.tokenizer_revision)
    template = resolve_chat_template(recipe.chat_template, tokenizer, empty_reasoning=recipe.empty_reasoning)
    tokenizer.chat_template = template.text  # what is saved with the shards is what rendered them
    return renderer_for(
        tokenizer,
        template,
        control_tokens=recipe.control_tokens,
        train_on=recipe.train_on,
        reasoning=recipe.reasoning,
        end_tokens_in_answers=recipe.end_tokens_in_answers,
        empty_reasoning=recipe.empty_reasoning,
    )


def sample(slices: dict[str, list[Slice]], recipe: Recipe) -> list[Conversation]:
    """Some conversations from places all over each source."""
    chosen = []
    for source in recipe.sources:
        mine = slices[source.name]
        for slice_ in mine[:: max(1, len(mine) // _SAMPLED_PLACES)]:
            rows, reader = islice(read_slice(source, slice_), _SAMPLED_ROWS), _reader(source, recipe)
            chosen += [c for raw in rows if isinstance(c := _convert(raw, reader, recipe), Conversation)]
    return chosen


def look(slices: dict[str, list[Slice]], recipe: Recipe, renderer: Renderer) -> Iterator[str]:
    """For each source a line on what becomes of some rows, from places all over it.

    Raises:
        ValueError: of none of them anything is kept, or a row cannot be used and the recipe says to refuse.
    """
    for source in recipe.sources:
        mine, reasons, kept = slices[source.name], Counter[str](), 0
        first: dict[str, str] = {}
        for slice_ in mine[:: max(1, len(mine) // _SAMPLED_PLACES)]:
            rows, reader = list(islice(read_slice(source, slice_), _SAMPLED_ROWS)), _reader(source, recipe)
            for raw, _, result in _render(rows, reader, recipe, renderer):
                if isinstance(result, BadRow):
                    _refuse_if_asked(raw, result, recipe)
                    reasons[result.reason] += 1
                    first.setdefault(result.reason, f"\n  {result.reason}: {raw.where}: {_shown(result, recipe)}")
                kept += not isinstance(result, BadRow)
        dropped = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
        yield f"check: source {source.name}: {kept:,} rows can be used" + (f", dropped: {dropped}" if dropped else "")
        if reasons and not kept:
            raise ValueError(
                f"source {source.name}: none of the {reasons.total():,} rows that were looked at can be used: {dropped}"
                "; see form, columns and filters of the recipe. The first of each reason:" + "".join(first.values())
            )


def tokenize_part(part: Part, how: tuple[Recipe, Renderer, dict[str, Described]]) -> None:
    """Tokenize one slice and write its part.

    Args:
        how: the recipe, what renders, and which rows are described, by source.

    Raises:
        ValueError: a row cannot be used and the recipe says to refuse.
    """
    recipe, renderer, described = how
    source = next(s for s in recipe.sources if s.name == part.slice.source)
    how_grouped = group_by(source, recipe)
    writer = PartWriter(renderer.encoder.name, described[source.name], how_grouped)
    writer.masked = frozenset(recipe.pii)  # the report shows dropped rows, and W&B gets the report
    writer.near_duplicates = recipe.near_duplicates
    writer.unseen = {*source.columns.values(), *grouping_column(how_grouped)}
    rows, reader = read_slice(source, part.slice), _reader(source, recipe)
    writer.unread = reader.unread
    while batch := list(islice(rows, ROWS_PER_CALL)):
        writer.note_columns(batch)
        for raw, conversation, result in _render(batch, reader, recipe, renderer):
            _take(raw, conversation, result, source, recipe, renderer, writer)
    writer.unseen |= reader.unseen
    writer.write(part)


def _render(
    batch: list[RawRow], reader: RowReader, recipe: Recipe, renderer: Renderer
) -> Iterator[tuple[RawRow, Conversation | None, Result]]:
    """Each row, its conversation and what became of it."""
    checked = _decontaminated([_convert(raw, reader, recipe) for raw in batch], recipe)
    converted = [_masked(c, recipe) for c in checked]
    rendered = iter(renderer.render([c for c, _ in converted if isinstance(c, Conversation)]))
    for raw, (c, num_masked) in zip(batch, converted, strict=True):
        if isinstance(c, Conversation):
            yield raw, c, _with_masks(_split_if_bad(c, next(rendered), recipe, renderer), num_masked)
        else:
            yield raw, None, c


def _split_if_bad(c: Conversation, result: TokenizedExample | BadRow, recipe: Recipe, renderer: Renderer) -> Result:
    """A row that cannot be rendered as a whole, in parts if it can be."""
    if isinstance(result, BadRow) and can_be_split(c, result):
        return fit_as_prompted(c, result, recipe.seq_len, recipe.too_long, renderer)
    return result


def _with_masks(result: Result, num_masked: int) -> Result:
    if not num_masked or isinstance(result, BadRow):
        return result
    rewrites = (*result.rewrites, Rewrite(MASKED, num_masked))
    return result._replace(rewrites=rewrites) if isinstance(result, Served) else replace(result, rewrites=rewrites)


def _reader(source: Source, recipe: Recipe) -> RowReader:
    separator = "\n\n### Input:\n" if recipe.chat_template == "alpaca" else "\n\n"
    return RowReader(source, separator, grouping_column(group_by(source, recipe)))


def _convert(raw: RawRow, reader: RowReader, recipe: Recipe) -> Conversation | BadRow:
    """The row's conversation, if the filters let it pass."""
    options = reader.source.filters or recipe.filters
    try:
        conversation = reader.conversation(raw)
        if options:
            check(conversation, options, LANGUAGES[detect_conversation(conversation)] if options.languages else None)
    except BadRow as bad:
        return bad
    return conversation


def _masked(conversation: Conversation | BadRow, recipe: Recipe) -> tuple[Conversation | BadRow, int]:
    """Addresses and numbers masked, after decontamination: masks would hide what the rows share. And how many."""
    if isinstance(conversation, BadRow) or not recipe.pii:
        return conversation, 0
    return mask_conversation(conversation, frozenset(recipe.pii))


def _decontaminated(converted: list[Conversation | BadRow], recipe: Recipe) -> list[Conversation | BadRow]:
    """Those that overlap with the evaluation files become bad rows."""
    if recipe.decontaminate is None:
        return converted
    verdicts = iter(evaluation_index(recipe.decontaminate).check([c for c in converted if isinstance(c, Conversation)]))
    return [next(verdicts) or c if isinstance(c, Conversation) else c for c in converted]


def _take(
    raw: RawRow,
    conversation: Conversation | None,
    result: Result,
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
        if isinstance(result, Served):
            writer.keep(raw, conversation, *result)
            return
        fits = (conversation, result, recipe.seq_len, recipe.too_long, renderer)
        if recipe.reasoning_history == "as_served":
            writer.keep(raw, conversation, *fit_as_served(*fits))
        else:
            writer.keep(raw, conversation, fit(*fits), result.rewrites, result.turns)
    except BadRow as bad:
        bad.__traceback__ = None  # it holds this frame, which holds the error: with it the whole part would stay
        _refuse_if_asked(raw, bad, recipe)
        writer.drop(raw, bad, 0 if isinstance(result, BadRow) else result.num_tokens)


def _refuse_if_asked(raw: RawRow, bad: BadRow, recipe: Recipe) -> None:
    if bad.reason in _MEANT:
        return
    key = "too_long" if bad.reason == "too_long" else "bad_rows"
    if getattr(recipe, key) == "refuse":
        raise ValueError(
            f"{raw.where}: {bad.reason}: {_shown(bad, recipe)}. The recipe says `{key}: refuse`; repair the row, or "
            f"set `{key}: {'drop' if key == 'too_long' else 'skip'}` to count it and go on"
        )


def _shown(bad: BadRow, recipe: Recipe) -> str:
    """Its detail, without the personal data that the recipe masks: logs are read by others."""
    return mask(bad.detail, frozenset(recipe.pii))[0]
