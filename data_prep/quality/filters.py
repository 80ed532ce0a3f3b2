"""Filters: leave rows out by length, language, regular expression or a Python function, as the recipe says."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_prep.conversation import BadRow, Conversation

if TYPE_CHECKING:
    import regex

Count = Annotated[int, Field(gt=0)]
FilterFunction = Callable[[list[dict[str, Any]]], "bool | str"]
# Of processor time, for one pattern on one message. Ordinary patterns take microseconds; this is for one that tries a
# number of ways that grows exponentially with the message.
REGEX_SECONDS = 5.0


class Filters(BaseModel):
    """The recipe's `filters`. A row is kept if it passes all that are given."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_answer_characters: Count | None = None  # of all assistant turns together
    max_answer_characters: Count | None = None  # the same
    min_trained_tokens: Count | None = None  # of all documents of a row
    max_trained_tokens: Count | None = None  # the same
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # ISO 639 codes; "und": undetermined
    must_match: tuple[str, ...] = ()  # each of these patterns is found in some message
    must_not_match: tuple[str, ...] = ()  # none of these is found in any message
    function: str | None = None  # "package.module:function", called with the messages; see `check`

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from data_prep.quality.languages import LANGUAGES

        if unknown := sorted(set(codes or ()) - set(LANGUAGES)):  # a typo would leave out every row
            raise ValueError(f"no such language code: {unknown}; known: {', '.join(sorted(set(LANGUAGES)))}")
        return codes

    @field_validator("must_match", "must_not_match")
    @classmethod
    def _compile_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _compiled(pattern)
        return patterns

    @field_validator("function")
    @classmethod
    def _split_name(cls, name: str | None) -> str | None:
        if name is not None:
            module_and_attribute(name)
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Filters:
        for what in ("answer_characters", "trained_tokens"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what} is {low}, above max_{what}, {high}: no row could pass")
        return self


def check(conversation: Conversation, options: Filters, language: str | None) -> None:
    """Refuse a row that the filters leave out.

    The function gets the messages as dicts with role and content, and returns True (keep), False, or the reason for
    leaving the row out as a text.

    Args:
        language: the row's language code; only needed if `options.languages` is given.

    Raises:
        BadRow: filtered_length, filtered_language, filtered_regex or filtered_function; filter_error where the function
            raised or returned something else.
        ValueError: a pattern that takes far too long, or a function that cannot be imported.
    """
    characters = sum(len(m.content) for m in conversation.messages if m.role == "assistant")
    _check_range("characters in the answers", characters, options.min_answer_characters, options.max_answer_characters)
    if options.languages is not None and language not in options.languages:
        raise BadRow("filtered_language", f"the language is {language!r}; wanted: {list(options.languages)}")
    _check_patterns(conversation, options)
    if options.function is not None:
        _check_function(conversation, options.function)


def check_trained_tokens(trained_tokens: int, options: Filters) -> None:
    """Refuse a row with too few or too many trained tokens.

    Raises:
        BadRow: filtered_length.
    """
    _check_range("trained tokens", trained_tokens, options.min_trained_tokens, options.max_trained_tokens)


@lru_cache(maxsize=8)
def resolve_function(name: str, what: str = "filters: function") -> Callable[..., Any]:
    """Import the function; `what` is the key that names it.

    Raises:
        ValueError: no such module or function, or not one that can be called.
    """
    module_name, attribute = module_and_attribute(name)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the module's own code may raise anything
        raise ValueError(
            f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}. Its module is looked for "
            f"in the current folder ({Path.cwd()}) and among the installed packages"
        ) from error
    if not callable(function):
        raise ValueError(f"{what} {name!r} is a {type(function).__name__}, not a function")
    return cast(Callable[..., Any], function)


def filter_identity(options: Filters) -> dict[str, str]:
    """The hash of the file that holds the function: rows filtered by other code must not be reused."""
    return {} if options.function is None else function_identity(resolve_function(options.function))


def function_identity(function: Callable[..., Any]) -> dict[str, str]:
    """The hash of the file that holds a function; nothing for one of no file."""
    path = inspect.getsourcefile(inspect.unwrap(function))
    return {} if path is None else {"function_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def _check_range(what: str, found: int, low: int | None, high: int | None) -> None:
    if low is not None and found < low:
        raise BadRow("filtered_length", f"{found} {what}; at least {low} wanted")
    if high is not None and found > high:
        raise BadRow("filtered_length", f"{found} {what}; at most {high} wanted")


def _check_patterns(conversation: Conversation, options: Filters) -> None:
    for pattern in options.must_match:
        if not any(_found(pattern, text, conversation) for m in conversation.messages for text in m.texts()):
            raise BadRow("filtered_regex", f"no message matches {pattern!r}")
    for pattern in options.must_not_match:
        for position, message in enumerate(conversation.messages):
            found = (_found(pattern, text, conversation) for text in message.texts())
            if match := next(filter(None, found), None):
                raise BadRow(
                    "filtered_regex", f"message {position} ({message.role}) matches {pattern!r}: {match[0][:80]!r}"
                )


def _found(pattern: str, text: str, conversation: Conversation) -> regex.Match[str] | None:
    try:
        return _compiled(pattern).search(text, timeout=REGEX_SECONDS)
    except TimeoutError:
        # Not a dropped row: whether a machine is fast enough must not decide what the shards hold.
        raise ValueError(
            f"filters: the pattern {pattern!r} took more than {REGEX_SECONDS:g} s on one message of {len(text)} "
            f"characters (source {conversation.source!r}, row {conversation.row}): it backtracks without end. Rewrite "
            "it without a repeated group that can match the same text in several ways, such as (a|aa)+"
        ) from None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> regex.Pattern[str]:
    import regex  # needed by transformers too; other than re, it can stop a search that takes too long

    try:
        return regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern[:200]!r} is not a regular expression: {error}") from None


def _check_function(conversation: Conversation, name: str) -> None:
    function = resolve_function(name)
    try:
        result = function(copy.deepcopy(conversation.as_dicts()))
    except Exception as error:
        raise BadRow("filter_error", f"{name} raised {type(error).__name__}: {error}") from error
    if isinstance(result, str) and result:
        raise BadRow("filtered_function", f"{name}: {result}")
    if not isinstance(result, bool):
        kind = type(result).__name__
        raise BadRow(
            "filter_error", f"{name} returned {str(result)[:80]!r} ({kind}); expected True, False or a reason (text)"
        )
    if not result:
        raise BadRow("filtered_function", f"{name} returned False")


def module_and_attribute(name: str) -> tuple[str, str]:
    """The parts of "package.module:function".

    Raises:
        ValueError: it has another form.
    """
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise ValueError(f"{name!r} does not name a function: write package.module:function")
    return module, attribute
