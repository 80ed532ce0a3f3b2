"""The recipe: what to read, and how to render, mix, split and pack it. One YAML file; unknown keys are refused."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_prep.other_tools_keys import LLAMA_FACTORY_COLUMNS, OTHERS_RECIPE_KEYS, OTHERS_SOURCE_KEYS
from data_prep.quality.decontamination import Decontaminate
from data_prep.quality.filters import Filters, module_and_attribute
from data_prep.quality.near_duplicates import NearDuplicates
from data_prep.secret_texts import secrets_in
from data_prep.strict_files import read_yaml

Form = Literal["auto", "alpaca", "dolly", "question_answer", "prompt_completion", "messages", "sharegpt", "text"]
MessageKey = Literal["role", "content", "reasoning", "tool_calls", "train", "system", "user", "assistant"]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
# The bounds are far above any use, and below what 32 and 64-bit integers and floats hold.
Count = Annotated[int, Field(gt=0, lt=2**53)]
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
Location = Annotated[str, Field(max_length=4096)]
MOST_PASSES = 10_000
Times = Annotated[float, Field(gt=0.0, le=MOST_PASSES)]
Repeats = Annotated[float, Field(ge=1.0, le=MOST_PASSES)]

# The columns each form reads, by the name our code uses for them, with the column's usual name in the data. A recipe
# renames them with `columns: {instruction: my_column}`.
_EVERY_CHAT = {"system": "system", "tools": "tools"}
_ONE_ANSWER = {"history": "history", **_EVERY_CHAT}
FORM_COLUMNS: dict[str, dict[str, str]] = {
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output", **_ONE_ANSWER},
    "dolly": {"instruction": "instruction", "context": "context", "response": "response", **_ONE_ANSWER},
    "question_answer": {"question": "question", "answer": "answer", **_ONE_ANSWER},
    "prompt_completion": {"prompt": "prompt", "completion": "completion", **_EVERY_CHAT},
    "messages": {"messages": "messages", **_EVERY_CHAT},
    "sharegpt": {"conversations": "conversations", **_EVERY_CHAT},
    "text": {"text": "text"},
    "auto": {},
}
# Columns that a row may lack; every other column of its form must be there.
OPTIONAL_COLUMNS = frozenset({"input", "context", "history", "system", "tools"})
# Where the answer stands, in the forms that have one answer. There, `reasoning` is read too, if `columns` names it.
ANSWER_COLUMNS = {
    "alpaca": "output",
    "dolly": "response",
    "question_answer": "answer",
    "prompt_completion": "completion",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GroupByColumn(_Strict):
    """`group_by: {column: NAME}`."""

    column: Annotated[str, Field(min_length=1, max_length=256)]  # the data's own name


GroupBy = Literal["question", "conversation"] | GroupByColumn


class Source(_Strict):
    """One data set: local files (`path`) or a hub data set (`dataset`), and how its rows become conversations."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]  # appears in metrics
    path: Location | list[Location] | None = None  # JSON or JSONL files; globs and $VARIABLES are expanded
    dataset: str | None = None  # hub data set id, read through `datasets`
    subset: str | None = None  # the hub data set's configuration name
    split: str = "train"  # the hub data set's split
    revision: str | None = None  # the hub data set's revision
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow"] = "auto"  # auto: by suffix and content
    encoding: str | None = None  # of text files, such as "cp949"; detected where it is not given
    field: str | None = None  # of each row, or of a whole JSON file: what holds the row or the rows
    transform: str | None = None  # "package.module:function": a row in, a row, a list of rows or None out
    form: Form = "auto"  # auto: recognised by the columns of the first rows
    columns: dict[str, str] = {}  # our name of a column: the data's, where they differ
    message_keys: dict[MessageKey, str] = {}  # our name of a key in a message: the data's, where unusual
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {}  # the data's role names: ours, where unusual
    answers: Literal["refuse", "first", "each"] = "refuse"  # of an answer that is a list of several
    ignore: tuple[str, ...] = ()  # columns and keys of messages that are left out on purpose
    placeholders: dict[str, str] = {}  # {{name}} in any text -> what to put there
    system: str | None = None  # a constant system prompt for rows that have none
    first: Count | None = None  # read only the first N rows
    take: Annotated[Count, Field(strict=True)] | Share | None = None  # of the rows kept: a number, or a share, 1.0 all
    weight: Weight | None = None  # wanted share of the mixture, relative to the other weights
    max_repeats: Repeats | None = None  # overrides the recipe's
    repeat: Times | None = None  # how many times to use the training rows
    filters: Filters | None = None  # in the place of the recipe's
    balance: Literal["task_type"] | None = None  # give each task type at most an equal share of the source
    stage: Annotated[int, Field(ge=0, le=1000)] = 0  # with `order: curriculum`: the stages follow each other
    eval_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # overrides the recipe's
    eval: bool = False  # all rows are evaluated, none is trained
    group_by: GroupBy | None = None  # overrides the recipe's

    @field_validator("path")
    @classmethod
    def _expand_variables(cls, path: str | list[str] | None) -> str | list[str] | None:
        if path is None:
            return None
        paths = [path] if isinstance(path, str) else path
        expanded = [os.path.expandvars(p) for p in paths]
        for p in expanded:
            if "$" in p:
                raise ValueError(f"path {p!r} uses an environment variable that is not set: set it, or write the path")
        return expanded[0] if isinstance(path, str) else expanded

    @field_validator("transform")
    @classmethod
    def _name_of_function(cls, name: str | None) -> str | None:
        if name is not None:
            module_and_attribute(name)
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(f"source {self.name!r}: give either `path` (local files) or `dataset` (a hub id)")
        if self.path is not None and (self.subset or self.revision or self.split != "train"):
            raise ValueError(f"source {self.name!r}: `subset`, `split` and `revision` belong to a hub `dataset`")
        if self.form == "auto" and self.columns:
            raise ValueError(f"source {self.name!r}: `columns` needs a `form`{_forms_with(self.columns)}")
        known = {*FORM_COLUMNS[self.form], *(["reasoning"] if self.form in ANSWER_COLUMNS else [])}
        for key in self.columns:
            if key not in known:
                raise ValueError(
                    f"source {self.name!r}: form {self.form} has no column {key!r}; it has {sorted(known)}"
                    f"{_other_column(key, known)}"
                )
        needed = {self.column(key) for key in FORM_COLUMNS[self.form] if key not in OPTIONAL_COLUMNS}
        if both := sorted(set(self.ignore) & {*needed, *self.columns.values(), *self.message_keys.values()}):
            raise ValueError(f"source {self.name!r}: {both} are read and in `ignore`: take them out of one")
        if self.answers == "each" and self.form not in ANSWER_COLUMNS:
            raise ValueError(f"source {self.name!r}: `answers: each` needs one of the forms {sorted(ANSWER_COLUMNS)}")
        self._refuse_training_keys()
        if self.weight is not None and self.repeat is not None:
            raise ValueError(f"source {self.name!r}: `weight` and `repeat` both say how often rows are used: give one")
        return self

    def _refuse_training_keys(self) -> None:
        keys = ("weight", "max_repeats", "repeat", "balance", "stage", "eval_fraction")
        given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
        if self.eval and given:
            raise ValueError(
                f"source {self.name!r}: with `eval: true` no row is trained and all are evaluated once: leave out "
                f"{', '.join(f'`{key}`' for key in given)}"
            )

    def column(self, key: str) -> str:
        """The data's column name for our `key`, such as "instruction"."""
        return self.columns.get(key, FORM_COLUMNS[self.form].get(key, key))


def _forms_with(columns: dict[str, str]) -> str:
    """The forms that have all these columns, as what to write."""
    found = [
        f"`form: {form}`"
        for form, all_columns in FORM_COLUMNS.items()
        if columns.keys() <= {*all_columns, *(["reasoning"] if form in ANSWER_COLUMNS else [])}
    ]
    return f": say {' or '.join(found)}" if found else "; auto maps columns itself"


def _other_column(key: str, known: set[str]) -> str:
    """LLaMA-Factory's name for a column, in our words."""
    ours = next((ours for ours in LLAMA_FACTORY_COLUMNS.get(key, ()) if ours in known), None)
    return f". LLaMA-Factory's {key!r} is {ours!r} here" if ours else ""


class Recipe(_Strict):
    """Everything that decides the bytes of the shards."""

    tokenizer: str  # folder or hub id
    tokenizer_revision: str | None = None  # revision of a hub tokenizer
    chat_template: str = "tokenizer"  # built-in name, "tokenizer", "tokenizer:FOLDER_OR_ID", or a .jinja file
    seq_len: Annotated[int, Field(ge=8, le=2**22)] = 4096  # tokens of a packed row at most
    sources: Annotated[list[Source], Field(min_length=1)]  # what to read
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42  # decides every random choice
    eval_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05  # of each source's distinct conversations
    group_by: GroupBy = "question"  # rows of the same one are on one side of the eval split
    deduplicate: bool = True  # exact duplicates of a whole conversation, within and across sources
    near_duplicates: NearDuplicates | None = None  # the same by MinHash, within and across sources
    decontaminate: Decontaminate | None = None  # drop rows that overlap with evaluation files
    filters: Filters | None = None  # rows to leave out by length, language, pattern or a function
    pii: tuple[Literal["email", "phone"], ...] = ()  # what to mask in all texts
    train_on: Literal["all", "last", "flags"] = "all"  # assistant turns: all not flagged off, the last, those flagged
    reasoning: Literal["keep", "strip"] = "keep"  # the model's reasoning before an answer
    empty_reasoning: Literal["mask", "train", "leave_out"] = "mask"  # the empty block of a turn without reasoning
    reasoning_history: Literal["keep", "as_served"] = "keep"  # that of earlier turns
    control_tokens: Literal["escape", "reject", "allow"] = "escape"  # content that spells a control token
    end_tokens_in_answers: Literal["strip", "keep", "reject"] = "strip"  # answers that end in `</s>` and the like
    bad_rows: Literal["skip", "refuse"] = "skip"  # a row that cannot be used: count and list it, or stop
    too_long: Literal["drop", "truncate", "split", "refuse"] = "drop"  # a conversation longer than seq_len
    weight_unit: Literal["trained_tokens", "tokens", "rows"] = "trained_tokens"  # what `weight` shares out
    max_repeats: Repeats = 1.0  # how often weights and balance may use a row at most
    total_tokens: Count | None = None  # size of the training mixture
    total_epochs: Times | None = None  # the same, in passes over all training rows
    order: Literal["shuffled", "curriculum"] = "shuffled"  # of the packed rows
    rows_per_slice: Annotated[int, Field(ge=1, le=10**7)] = 5000  # raw rows of one slice, which is tokenized at once
    rows_per_shard: Annotated[int, Field(ge=1, le=10**6)] = 4096  # packed rows of one shard file

    @model_validator(mode="after")
    def _hold_nothing_out_next_to_an_eval_source(self) -> Recipe:
        if "eval_fraction" not in self.model_fields_set and any(s.eval for s in self.sources):
            object.__setattr__(self, "eval_fraction", 0.0)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [s.name for s in self.sources]
        for name, count in Counter(names).items():
            if count > 1:
                raise ValueError(f"two sources are named {name!r}: names must differ")
        trained = [s.name for s in self.sources if not s.eval]
        if not trained:
            raise ValueError("all sources are `eval: true`: nothing is left to train on")
        weighted = [s.name for s in self.sources if s.weight is not None]
        if weighted and len(weighted) != len(trained):
            missing = sorted(set(trained) - set(weighted))
            raise ValueError(f"sources {weighted} have a `weight`, {missing} have none: give all of them one, or none")
        if self.total_tokens is not None and self.total_epochs is not None:
            raise ValueError("`total_tokens` and `total_epochs` both set the size of the mixture: give one")
        looked_at = bool(weighted) or any(s.balance for s in self.sources)
        given = self.max_repeats != 1.0 or any(s.max_repeats is not None for s in self.sources)
        if given and not looked_at:
            raise ValueError("`max_repeats` limits weights and `balance` only, and no source has either: leave it out")
        if self.order == "shuffled" and any(s.stage for s in self.sources):
            raise ValueError("a source has a `stage`, which only `order: curriculum` looks at")
        return self

    @property
    def has_own_functions(self) -> bool:
        """Whether it names a Python function, which may import anything."""
        filters = (self.filters, *(s.filters for s in self.sources))
        return any(s.transform for s in self.sources) or any(f is not None and f.function for f in filters)


def group_by(source: Source, recipe: Recipe) -> GroupBy:
    """What makes a group of the source's rows."""
    return recipe.group_by if source.group_by is None else source.group_by


def grouping_column(how: GroupBy) -> list[str]:
    """The data's column that makes the groups, if one does."""
    return [how.column] if isinstance(how, GroupByColumn) else []


_OTHERS_KEYS: dict[type[BaseModel], dict[str, str]] = {Source: OTHERS_SOURCE_KEYS, Recipe: OTHERS_RECIPE_KEYS}

_MODELS: dict[str | int, type[BaseModel]] = {
    "sources": Source,
    "filters": Filters,
    "near_duplicates": NearDuplicates,
    "decontaminate": Decontaminate,
    "group_by": GroupByColumn,
}
_MAX_PROBLEMS = 20  # shown of one recipe


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ValueError: not YAML, an unknown key (with the nearest known one), or a value out of range; names the file.
    """
    try:
        raw, _ = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"recipe {error}") from None
    _refuse_secrets(path, raw)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors(include_context=False, include_url=False)]
        more = [f"  and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ValueError(f"recipe {path}:\n" + "\n".join(problems[:_MAX_PROBLEMS] + more)) from None
    _refuse_secrets(path, recipe.model_dump())  # variables in paths are filled in by now
    return recipe


def _refuse_secrets(path: str | Path, raw: dict[str, Any]) -> None:
    for key, value in raw.items():
        if any(secrets_in(value)):
            raise ValueError(
                f"recipe {path}: {key}: a text looks like a secret (or a password in an address), and the recipe goes "
                "into the manifest: leave it to the environment (HF_TOKEN), to ~/.netrc or to the file system's own "
                "configuration (see fsspec)"
            )


def _shown(value: Any) -> str:
    try:
        return str(value)[:80]
    except ValueError:  # Python writes no numbers of thousands of digits
        return "a number of thousands of digits"


def _explain(error: Any) -> str:
    where = ".".join(str(part)[:60] for part in error["loc"])
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")[:2000]
        said_all = isinstance(error["input"], dict) and error["type"] in ("value_error", "missing")
        found = "" if said_all else f" (found {_shown(error['input'])!r})"
        return f"  {where or 'recipe'}: {message}{found}"
    key = str(error["loc"][-1])[:60]
    model = next((_MODELS[part] for part in error["loc"][-2::-1] if part in _MODELS), Recipe)
    if theirs := _OTHERS_KEYS.get(model, {}).get(key):
        return f"  {where}: unknown key, of another tool; here: {theirs}"
    known = model.model_fields
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"  {where}: unknown key; {hint}"
