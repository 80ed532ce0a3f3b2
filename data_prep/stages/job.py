"""One preparation: the resolved recipe, its identity, and the parts that its work is cut into."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_prep.atomic_files import reading, to_json, write_atomically
from data_prep.provenance import FOLDER as DOCUMENTS_DIR
from data_prep.provenance import file_of
from data_prep.quality.filters import filter_identity
from data_prep.recipe import Recipe, Source, group_by, grouping_column
from data_prep.rendering.renderer import Renderer
from data_prep.shards import MANIFEST, SPLITS, TOKENIZER_DIR, Manifest, TokenizerIdentity, check_files, read_manifest
from data_prep.sources.evaluation_files import evaluation_identity
from data_prep.sources.form_recognition import check_columns, resolve_form, unread_names
from data_prep.sources.plain_copies import use_cache
from data_prep.sources.reshaped_rows import transform_identity
from data_prep.sources.slices import Slice, read_slice, slice_source, source_identity
from data_prep.stages.described_rows import Described
from data_prep.stages.identity_differences import describe_differences
from data_prep.stages.parts import Part
from data_prep.stages.plan_notes import unread_note
from data_prep.stages.plan_stage import PlanSummary
from data_prep.stages.tokenize_stage import make_renderer
from data_prep.tokenization.tokenizer import fingerprint

WORK_DIR = ".work"
REMOVE = "delete it, and run the same command again"
_WRITTEN = frozenset(
    {WORK_DIR, MANIFEST, TOKENIZER_DIR, DOCUMENTS_DIR, "dropped", "report.json", *SPLITS}
)  # in --output
_WORK_FORMAT = 8  # of the parts and the plan: work that another version left is not reused
# What decides the bytes of a part. A part's folder is named by it, so that a changed recipe reuses no part wrongly, and
# reuses all parts when only the mixture has changed.
_RECIPE_KEYS = (
    "tokenizer",
    "chat_template",
    "seq_len",
    "train_on",
    "reasoning",
    "empty_reasoning",
    "reasoning_history",
    "control_tokens",
    "end_tokens_in_answers",
    "bad_rows",
    "too_long",
)
_QUALITY_KEYS = ("near_duplicates", "decontaminate", "filters", "pii")
_SLICE_KEYS = ("name", "path", "dataset", "subset", "split", "revision", "first", "format", "encoding", "field")
_SOURCE_KEYS = (
    *(*_SLICE_KEYS, "transform", "form", "columns", "message_keys", "roles", "answers", "ignore"),
    *("placeholders", "system", "filters"),
)


@dataclass(frozen=True)
class Job:
    """One preparation."""

    recipe: Recipe
    output: Path
    renderer: Renderer
    inputs: dict[str, list[dict[str, Any]]]  # by source: what its files are
    quality: dict[str, Any]  # what rows are checked against
    slices: dict[str, list[Slice]]  # by source; none where a complete output was made from the same
    recognised: frozenset[str]  # names of the sources whose form was not stated
    described: dict[str, Described]  # by source: the rows whose task type and language are looked up

    @cached_property
    def tokenizer(self) -> TokenizerIdentity:
        """The tokenizer's hashes, which take half a second."""
        return fingerprint(self.renderer.tokenizer)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the bytes: the recipe, the input files as they are, the tokenizer, the template."""
        backend = {k: v for k, v in self.tokenizer.items() if k != "name"}
        # Templates print the special tokens by their roles, which tokenizer_config.json gives and tokenizer.json not.
        named = {
            "special_tokens": self.renderer.tokenizer.special_tokens_map,
            "special_ids": self.renderer.special_ids,
        }
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "work_format": _WORK_FORMAT,
            "inputs": self.inputs,
            "quality": self.quality,
            "tokenizer": backend | named,
            "chat_template_sha256": hashlib.sha256(self.renderer.template.text.encode()).hexdigest(),
        }

    @cached_property
    def parts(self) -> list[Part]:
        """One for each slice, in the order of the recipe."""
        if not self.slices:
            return []
        parts = []
        for source in self.recipe.sources:
            name = f"tokenize-{_part_digest(source, self.identity, self.described[source.name])}"
            parts += [Part(self.work / name, slice_) for slice_ in self.slices[source.name]]
        return parts

    @property
    def num_parts(self) -> int:
        """Known before the parts themselves."""
        return sum(map(len, self.slices.values()))

    @property
    def is_fresh(self) -> bool:
        """Whether nothing at all is tokenized; known before the parts."""
        return not any(self.work.glob("tokenize-*"))

    @property
    def work(self) -> Path:
        """Everything that is deleted at the end."""
        return self.output / WORK_DIR

    @property
    def plan_dir(self) -> Path:
        """The plan, and the markers of the shards written by it."""
        return self.work / f"plan-{digest(self.identity)}"

    def missing_parts(self) -> list[int]:
        """Numbers of the parts that are not tokenized yet."""
        return [i for i, part in enumerate(self.parts) if not part.is_complete()]

    def summary(self) -> PlanSummary | None:
        """The plan's summary, or None while there is no plan."""
        path = self.plan_dir / "plan.json"
        if not (path.exists() and (self.plan_dir / file_of("all")).exists()):  # an older version's lacks it
            return None
        with reading(path, REMOVE):
            summary: PlanSummary = json.loads(path.read_text(encoding="utf-8"))
        return summary

    def planned(self) -> PlanSummary:
        """The plan's summary.

        Raises:
            ValueError: there is no plan yet.
        """
        summary = self.summary()
        if summary is None:
            raise ValueError("there is no plan yet: run `--stage plan` first")
        return summary


def open_job(recipe: Recipe, output: Path) -> Job:
    """Look at the sources and the tokenizer, and cut the work into parts.

    Raises:
        ValueError: input that cannot be used.
    """
    inputs = {source.name: source_identity(source) for source in recipe.sources}
    _refuse_own_output(inputs, output)
    quality = _quality_identity(recipe)
    recognised = frozenset(source.name for source in recipe.sources if source.form == "auto")
    is_complete = (output / MANIFEST).exists()
    prepared = _as_prepared(recipe, read_manifest(output)) if is_complete else None
    if prepared:
        renderer = make_renderer(prepared)
        return Job(prepared, output, renderer, inputs, quality, {}, recognised, {})
    # The tasks of a job array share the copies, and they go when the work is done.
    use_cache(None if is_complete else output / WORK_DIR / "inputs")
    slices = {s.name: _slices(s, recipe, inputs[s.name], output / WORK_DIR) for s in recipe.sources}
    recipe = recipe.model_copy(update={"sources": [_resolve(s, recipe, slices[s.name]) for s in recipe.sources]})
    if not any(slices.values()):
        raise ValueError("the sources hold no rows")
    described = {s.name: Described.of_source(s, slices[s.name]) for s in recipe.sources}
    return Job(recipe, output, make_renderer(recipe), inputs, quality, slices, recognised, described)


def _refuse_own_output(inputs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """A glob such as DIR/**/*.jsonl finds what an earlier run has written, dropped rows above all."""
    folder = output.resolve()
    for name, files in inputs.items():
        for path in (Path(file["path"]).resolve() for file in files if "path" in file):
            if path.is_relative_to(folder) and path.relative_to(folder).parts[0] in _WRITTEN:
                raise ValueError(
                    f"source {name!r}: {path} is a file that preparation itself writes into --output {output}: let "
                    "`path` name the raw files only, or choose an --output that it does not reach"
                )


def refuse_changed_input(job: Job) -> None:
    """Parts are named by the input as it was when the run began.

    Raises:
        ValueError: it has changed since.
    """
    for source in job.recipe.sources:
        if source_identity(source) != job.inputs[source.name]:
            for part in job.parts:
                if part.slice.source == source.name:
                    part.file(".json").unlink(missing_ok=True)
            raise ValueError(f"source {source.name!r}: its input changed while it was read: prepare it again")


def already_complete(job: Job) -> Manifest | None:
    """The manifest if the output directory is complete.

    Raises:
        ValueError: it was made from something else, or is damaged.
    """
    if not (job.output / MANIFEST).exists():
        return None
    manifest: Manifest = read_manifest(job.output)
    if manifest["identity"] != digest(job.identity):
        made = {**manifest.get("made_from", {}), "recipe": manifest["recipe"]}
        now = json.loads(to_json(job.identity))  # as the manifest holds it
        raise ValueError(
            f"{job.output} is complete and was made from {describe_differences(made, now)}\n"
            "  Choose another --output, or delete it first"
        )
    problems = check_files(job.output, manifest)
    if problems:
        raise ValueError(f"{job.output} is complete but damaged: {'; '.join(problems)}. Delete it and prepare it again")
    return manifest


def _as_prepared(recipe: Recipe, manifest: Manifest) -> Recipe | None:
    """The recipe with the forms that a former run recognised, so that no input has to be read; None if it lacks one."""
    made = {source["name"]: source for source in manifest["recipe"]["sources"]}
    sources = []
    for source in recipe.sources:
        if source.form == "auto":
            if source.name not in manifest.get("recognised", []):
                return None
            found = {key: made[source.name][key] for key in ("form", "columns")}
            source = source.model_copy(update=found)
        sources.append(source)
    return recipe.model_copy(update={"sources": sources})


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _slices(source: Source, recipe: Recipe, inputs: Any, work: Path) -> list[Slice]:
    """The source's slices, found once: each task of a job array would have to scan all of it again."""
    dumped = source.model_dump(mode="json")
    key = {**{k: dumped[k] for k in _SLICE_KEYS}, "rows": recipe.rows_per_slice, "inputs": inputs}
    path = work / f"slices-{digest(key)}.json"
    if path.exists():
        with reading(path, REMOVE):
            return [Slice(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    slices = slice_source(source, recipe.rows_per_slice)
    if not (work.parent / MANIFEST).exists():  # a complete directory is left as it is
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json([asdict(slice_) for slice_ in slices]))
    return slices


def _resolve(source: Source, recipe: Recipe, slices: list[Slice]) -> Source:
    """The source with its form known, checked against its first rows."""
    rows = list(islice(chain.from_iterable(read_slice(source, slice_) for slice_ in slices), 100))
    resolved = resolve_form(source, rows)
    if source.form == "auto":
        print(f"source {source.name}: form {resolved.form}, columns {resolved.columns or 'as usual'}")
    check_columns(resolved, rows)
    grouping = grouping_column(group_by(source, recipe))
    if unread := [name for name in unread_names(resolved, rows) if name not in grouping]:
        print(unread_note(source.name, unread))
    return resolved


def _quality_identity(recipe: Recipe) -> dict[str, Any]:
    """The evaluation files and the user's functions as they are: rows that others checked must not be reused."""
    options = [f for f in (recipe.filters, *(s.filters for s in recipe.sources)) if f is not None]
    return {
        "decontaminate": evaluation_identity(recipe.decontaminate) if recipe.decontaminate else [],
        "filters": [filter_identity(f) for f in options],
        "transforms": {source.name: transform_identity(source) for source in recipe.sources if source.transform},
    }


def _part_digest(source: Source, identity: dict[str, Any], described: Described) -> str:
    dumped = source.model_dump(mode="json")
    own = {"transforms": identity["quality"]["transforms"].get(source.name)}  # those of others do not matter
    return digest(
        {
            **{k: identity["recipe"][k] for k in (*_RECIPE_KEYS, *_QUALITY_KEYS, "rows_per_slice")},
            **{k: dumped[k] for k in _SOURCE_KEYS},
            **{k: identity[k] for k in ("tokenizer", "chat_template_sha256", "work_format")},
            "quality": identity["quality"] | own,
            "described": asdict(described),
            "group_by": dumped["group_by"] or identity["recipe"]["group_by"],
            "input": identity["inputs"][source.name],
        }
    )
