"""Whether a model's own chat template can be trained on: what `data_prep.prepare` would find, of a model alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OwnTemplate:
    """A model's chat template, tried on a probe conversation."""

    refusal: str | None  # why it cannot be trained on; None if it can
    origin: str  # the tokenizer, or who wrote the variant of it that can be trained on
    end_token_ids: tuple[int, ...]  # those that end an answer; the tokenizer's own where the template is refused
    tokenizer_size: int  # ids of the tokenizer; a model's matrices may have more rows


def built_in_names() -> list[str]:
    """Templates that a recipe can name instead."""
    from data_prep.rendering import chat_templates

    return chat_templates.built_in_names()


def own_template(model: str) -> OwnTemplate | None:
    """The template of the tokenizer; None if it has none.

    Args:
        model: a folder or a hub id.

    Raises:
        ValueError: the tokenizer cannot be loaded.
    """
    from data_prep.rendering.chat_templates import resolve_chat_template
    from data_prep.rendering.tool_use_renderer import renderer_for
    from data_prep.tokenization.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(model)
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises that for a damaged file
        raise ValueError(f"tokenizer {model!r} cannot be loaded: {error}") from None
    if not tokenizer.chat_template:
        return None
    own_end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    try:
        template = resolve_chat_template("tokenizer", tokenizer)
        renderer = renderer_for(tokenizer, template)
    except ValueError as error:
        return OwnTemplate(
            refusal=str(error), origin="the tokenizer", end_token_ids=own_end, tokenizer_size=len(tokenizer)
        )
    ends = tuple(sorted(renderer.end_token_ids))
    return OwnTemplate(refusal=None, origin=template.origin, end_token_ids=ends, tokenizer_size=len(tokenizer))
