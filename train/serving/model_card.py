"""README.md of an export, as the hub shows it: base model, data, options, metrics, limits and licence.

It is made from run.json, the shards' manifest, the trainer's state and the proof. Texts of the data and paths of this
machine are not in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.serving.card_tables import benchmarks_table, metrics_table, options_table, sources_table, splits_table
from train.serving.export_source import read_json

FILE = "README.md"
UNKNOWN = "unknown"
# Kept from the base model's or the data's own words: what a licence allows is for people to decide.
_NO_LICENCE = (
    "**Unknown.** Whoever exported this has not given a licence (`--license`). Those of the base model and of the data "
    "hold in any case: look them up before you use or pass on this model."
)
_USE = """```python
from transformers import pipeline

ask = pipeline("text-generation", model="{name}", max_new_tokens=256, return_full_text=False)
print(ask([{{"role": "user", "content": "..."}}])[0]["generated_text"])
```"""


@dataclass(frozen=True)
class Licence:
    """What the user says, by the hub's names of the fields."""

    license: str = UNKNOWN
    license_name: str | None = None  # of license: other
    license_link: str | None = None

    def check(self) -> None:
        """Refuse what the hub would not read.

        Raises:
            ValueError: no identifier, or a name without `other`.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(f"--license: expected an identifier of the hub such as apache-2.0, found {self.license!r}")
        if (self.license == "other") != (self.license_name is not None):
            raise ValueError("--license other and --license_name go together: give both, or neither")

    def fields(self) -> dict[str, str]:
        """Of the card's metadata."""
        given = {"license": self.license, "license_name": self.license_name, "license_link": self.license_link}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class CardSources:
    """What a card is made from."""

    name: str
    record: dict[str, Any]  # export.json, as far as it is known: run, source, step, weights, digests of the base
    proof: dict[str, Any]  # of export.json
    run: dict[str, Any]  # run.json; empty: none
    state: dict[str, Any]  # trainer_state.json; empty: none
    manifest: dict[str, Any]  # of the shards; empty: they are not here
    licence: Licence
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # of train.evaluate, of the exported step


def read_evaluations(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """What train.evaluate has recorded in the folder of a run for earlier exports of the same step, oldest first."""
    found = [read_json(path) for path in (run_dir / "evaluation").glob("*.json")]
    return sorted((each for each in found if each.get("step") == step), key=lambda each: str(each.get("time")))


def model_card(sources: CardSources) -> str:
    """The text of README.md."""
    parts = [f"---\n{_metadata(sources)}---", f"# {sources.name}", "\n".join(_summary(sources))]
    for title, lines in (
        ("Use", [_USE.format(name=sources.name)]),
        ("Data", _data(sources)),
        ("Training options", options_table(sources.run)),
        ("Metrics", metrics_table(sources.run, sources.state, sources.record.get("step"))),
        *([("Benchmarks", benchmarks_table(sources.evaluations))] if sources.evaluations else []),
        ("Limits", _limits(sources)),
        ("Licence", _licence(sources)),
    ):
        parts.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _metadata(sources: CardSources) -> str:
    import yaml

    fields: dict[str, Any] = dict(sources.licence.fields())
    if base := _hub_id(sources.run.get("model_name_or_path")):
        fields["base_model"] = base
    data = [source.get("dataset") for source in _recipe(sources).get("sources", [])]
    if named := sorted({name for name in data if _hub_id(name)}):
        fields["datasets"] = named
    fields |= {"library_name": "peft" if "to be loaded over" in str(sources.record.get("weights")) else "transformers"}
    fields |= {"pipeline_tag": "text-generation", "tags": ["packhaul", "sft"]}
    return str(yaml.safe_dump(fields, allow_unicode=True, sort_keys=False))


def _hub_id(name: Any) -> str | None:
    """The name, if it is one on the hub and no folder of this machine."""
    if not isinstance(name, str) or Path(name).exists():
        return None
    return name if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) else None


def _summary(sources: CardSources) -> Iterator[str]:
    record, proof = sources.record, sources.proof
    base = record.get("model_name_or_path") or UNKNOWN
    digests = ", ".join(f"{name} `{digest}`" for name, digest in sorted((record.get("base_model") or {}).items()))
    yield f"A supervised fine-tuning of `{base}` by packhaul: the loss was on the answers alone."
    yield ""
    yield f"- Base model: `{base}`" + (f" ({digests})" if digests else "; its weights were not recorded")
    yield f"- Exported: {record.get('source')} of the run `{record.get('run')}`, step {record.get('step')}; "
    yield f"  weights {record.get('weights')}"
    yield f"- Code: commit `{record.get('git_commit') or UNKNOWN}`; {_versions(record)}"
    if proof.get("run"):
        yield f"- Proof: loss {proof['trained_loss']:.6f} as trained, {proof['exported_loss']:.6f} as exported, on "
        yield f"  {proof['documents']} documents of the {proof['split']} split"
    else:
        yield "- Proof: **not run**: nothing has shown that these weights are the model that was trained"


def _versions(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())


def _recipe(sources: CardSources) -> dict[str, Any]:
    return sources.manifest.get("recipe") or {}


def _data(sources: CardSources) -> Iterator[str]:
    recorded = sources.record.get("manifest_sha256")
    if not _recipe(sources):
        yield f"The shards were not at hand (manifest `{recorded or UNKNOWN}`): nothing else is known of the data."
        return
    yield from sources_table(sources.manifest)
    yield ""
    yield from splits_table(sources.manifest)
    yield ""
    text = json.dumps(_recipe(sources), sort_keys=True, ensure_ascii=False)
    yield f"- Recipe, as resolved: sha256 `{hashlib.sha256(text.encode()).hexdigest()}`"
    identity = sources.manifest.get("identity")
    yield f"- Shards: identity `{identity}` (of recipe, inputs and tokenizer), manifest sha256 `{recorded}`"
    tokenizer = sources.manifest.get("tokenizer") or {}
    yield f"- Tokenizer `{Path(str(tokenizer.get('name'))).name}`: sha256 `{tokenizer.get('sha256')}`"
    yield f"- Chat template: sha256 `{sources.manifest.get('chat_template_sha256')}`"
    yield f"- Licences of the sources: {UNKNOWN}; the recipe does not name them"


def _limits(sources: CardSources) -> Iterator[str]:
    recipe, proof = _recipe(sources), sources.proof
    yield "- It was trained to answer as its data does, and knows and errs as the base model and that data do."
    yield "- It was not tuned on preferences, and its safety was not evaluated."
    yield "- The losses above are on held-out rows of the same sources. They say nothing about other texts."
    if recipe:
        yield f"- Documents had at most {sources.manifest.get('seq_len')} tokens: nothing longer was trained."
        kinds = ", ".join(map(str, recipe.get("pii") or []))
        yield "- Personal data in the sources: " + (f"looked for ({kinds})" if kinds else "not looked for")
        overlap = recipe.get("decontaminate")
        yield "- Overlap with evaluation texts: " + ("rows with it were dropped" if overlap else "not looked for")
    if not proof.get("run"):
        yield "- The export was not compared with the trained model."


def _licence(sources: CardSources) -> Iterator[str]:
    licence = sources.licence
    if licence.license == UNKNOWN:
        yield _NO_LICENCE
        return
    name = licence.license_name or licence.license
    yield f"{name}" + (f": {licence.license_link}" if licence.license_link else "")
    yield ""
    yield "As given at the export. The licences of the base model and of the data hold besides."
