"""The recipe: what to read, how to render it, how to mix, split and pack it. One YAML file, unknown keys refused."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_prep.decontamination import Decontaminate
from data_prep.filters import Filters
from data_prep.near_duplicates import NearDuplicates
from data_prep.strict_files import read_yaml

Form = Literal["auto", "alpaca", "dolly", "question_answer", "prompt_completion", "messages", "sharegpt"]
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
FORM_COLUMNS: dict[str, dict[str, str]] = {
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
    "dolly": {"instruction": "instruction", "context": "context", "response": "response"},
    "question_answer": {"question": "question", "answer": "answer"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion", "tools": "tools"},
    "messages": {"messages": "messages", "tools": "tools"},
    "sharegpt": {"conversations": "conversations", "tools": "tools"},
    "auto": {},
}
# Columns that a row may lack; every other column of its form must be there.
OPTIONAL_COLUMNS = frozenset({"input", "context", "system", "tools"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(_Strict):
    """One data set: local files (`path`) or a hub data set (`dataset`), and how its rows become conversations."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    path: Location | list[Location] | None = None  # JSON or JSONL files; globs and $VARIABLES are expanded
    dataset: str | None = None  # hub data set id, read through `datasets`
    subset: str | None = None  # the hub data set's configuration name
    split: str = "train"
    revision: str | None = None
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow"] = "auto"  # auto: by suffix and content
    encoding: str | None = None  # of text files, such as "cp949"; detected where it is not given
    form: Form = "auto"  # auto: recognised by the columns of the first rows
    columns: dict[str, str] = {}
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {}  # the data's role names: ours, where unusual
    placeholders: dict[str, str] = {}  # {{name}} in any text -> what to put there
    system: str | None = None  # a constant system prompt for rows that have none
    first: Count | None = None  # read only the first N rows
    take: Annotated[Count, Field(strict=True)] | Share | None = None  # of the rows kept: a number, or a share, 1.0 all
    weight: Weight | None = None  # wanted share of the mixture, relative to the other weights
    max_repeats: Repeats | None = None  # overrides the recipe's
    repeat: Times | None = None  # use the training rows so many times over
    filters: Filters | None = None  # in the place of the recipe's
    balance: Literal["task_type"] | None = None  # give each task type at most an equal share of the source
    stage: Annotated[int, Field(ge=0, le=1000)] = 0  # with `order: curriculum`: the stages follow each other
    eval_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # overrides the recipe's

    @field_validator("path")
    @classmethod
    def _expand_variables(cls, path: str | list[str] | None) -> str | list[str] | None:
        if path is None:
            return None
        expanded = [os.path.expandvars(p) for p in ([path] if isinstance(path, str) else path)]
        for p in expanded:
            if "$" in p:
                raise ValueError(f"path {p!r} uses an environment variable that is not set: set it, or write the path")
        return expanded[0] if isinstance(path, str) else expanded

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(f"source {self.name!r}: give either `path` (local files) or `dataset` (a hub id)")
        if self.path is not None and (self.subset or self.revision or self.split != "train"):
            raise ValueError(f"source {self.name!r}: `subset`, `split` and `revision` belong to a hub `dataset`")
        if self.form == "auto" and self.columns:
            raise ValueError(f"source {self.name!r}: `columns` needs a `form` to belong to; auto maps columns itself")
        known = {*FORM_COLUMNS[self.form], "system"}
        for key in self.columns:
            if key not in known:
                raise ValueError(
                    f"source {self.name!r}: form {self.form} has no column {key!r}; it has {sorted(known)}"
                )
        if self.weight is not None and self.repeat is not None:
            raise ValueError(f"source {self.name!r}: `weight` and `repeat` both say how often rows are used: give one")
        return self

    def column(self, key: str) -> str:
        """The data's column name for our `key`, such as "instruction"."""
        return self.columns.get(key, FORM_COLUMNS[self.form].get(key, key))


class Recipe(_Strict):
    """Everything that decides the bytes of the shards."""

    tokenizer: str  # folder or hub id
    tokenizer_revision: str | None = None
    chat_template: str = "tokenizer"  # built-in name, "tokenizer", "tokenizer:FOLDER_OR_ID", or a .jinja file
    seq_len: Annotated[int, Field(ge=8, le=2**22)] = 4096  # tokens of a packed row at most
    sources: Annotated[list[Source], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    eval_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05  # of each source's distinct conversations
    deduplicate: bool = True  # exact duplicates of a whole conversation, within and across sources
    near_duplicates: NearDuplicates | None = None  # the same by MinHash, within and across sources
    decontaminate: Decontaminate | None = None  # drop rows that overlap with evaluation files
    filters: Filters | None = None  # rows to leave out by length, language, pattern or a function
    pii: tuple[Literal["email", "phone"], ...] = ()  # what to mask in all texts
    train_on: Literal["all", "last", "flags"] = "all"  # assistant turns: all not flagged off, the last, those flagged
    reasoning: Literal["keep", "strip"] = "keep"  # the model's thoughts before an answer
    control_tokens: Literal["escape", "reject", "allow"] = "escape"  # content that spells a control token
    bad_rows: Literal["skip", "refuse"] = "skip"  # a row that cannot be used: count and list it, or stop
    too_long: Literal["drop", "truncate", "split", "refuse"] = "drop"  # a conversation longer than seq_len
    weight_unit: Literal["trained_tokens", "tokens", "rows"] = "trained_tokens"  # what `weight` shares out
    max_repeats: Repeats = 1.0  # how often weights and balance may use a row at most
    total_tokens: Count | None = None  # size of the training mixture
    total_epochs: Times | None = None  # the same, in passes over all training rows
    order: Literal["shuffled", "curriculum"] = "shuffled"  # of the packed rows
    rows_per_slice: Annotated[int, Field(ge=1, le=10**7)] = 5000  # raw rows of one restartable piece of work
    rows_per_shard: Annotated[int, Field(ge=1, le=10**6)] = 4096  # packed rows of one shard file

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [s.name for s in self.sources]
        for name, count in Counter(names).items():
            if count > 1:
                raise ValueError(f"two sources are named {name!r}: names must differ")
        weighted = [s.name for s in self.sources if s.weight is not None]
        if weighted and len(weighted) != len(names):
            missing = sorted(set(names) - set(weighted))
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


_MODELS: dict[str | int, type[BaseModel]] = {
    "sources": Source,
    "filters": Filters,
    "near_duplicates": NearDuplicates,
    "decontaminate": Decontaminate,
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
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors(include_context=False, include_url=False)]
        more = [f"  and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ValueError(f"recipe {path}:\n" + "\n".join(problems[:_MAX_PROBLEMS] + more)) from None


def _shown(value: Any) -> str:
    try:
        return str(value)[:80]
    except ValueError:  # Python writes no numbers of thousands of digits
        return "a number of thousands of digits"


def _explain(error: Any) -> str:
    where = ".".join(str(part)[:60] for part in error["loc"])
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")[:2000]
        return f"  {where or 'recipe'}: {message} (found {_shown(error['input'])!r})"
    key = str(error["loc"][-1])[:60]
    known = next((_MODELS[part] for part in error["loc"][-2::-1] if part in _MODELS), Recipe).model_fields
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"  {where}: unknown key; {hint}"
