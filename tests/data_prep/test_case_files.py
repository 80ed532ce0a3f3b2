"""Small files made after public bug reports: each is read as its table says, through a whole preparation."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_prep import prepare
from data_prep.shards import Manifest, read_manifest, read_rows, shard_files


@pytest.fixture(scope="session")
def case_files(shared_data) -> Path:
    """Next to the folder of real data."""
    folder = shared_data.parent / "cases" / "data"
    if not folder.is_dir():
        pytest.skip(f"case files not found at {folder}")
    return folder


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")


def prepared(case_files: Path, folder: Path, tokenizer, sources: list[dict[str, Any]]) -> int:
    located = [{**source, "path": str(case_files / source["path"])} for source in sources]
    recipe = {"tokenizer": tokenizer.name_or_path, "chat_template": "qwen3", "seq_len": 2048, "eval_fraction": 0}
    text = yaml.safe_dump({**recipe, "deduplicate": False, "sources": located})
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    arguments = ["--recipe", str(folder / "recipe.yaml"), "--output", str(folder / "out"), "--num-workers", "1"]
    return prepare.main([*arguments, "--encoder", "tokenizers"])


DPO = {"form": "prompt_completion", "columns": {"prompt": "conversations", "completion": "chosen"}}
# File, options of the source, rows kept, rows dropped by reason, texts that a document holds each, what is named.
READ = [
    ("01_tool_args.jsonl", {}, 5, {"tool_call": 1}, ['"n": 12345678901234567890123, "f": 1.0, "z": null'], "[].id"),
    ("03_padded.parquet", {}, 2, {}, ['"arguments": {"city": "Oslo"}', '"arguments": {"zip": "0150"}'], ""),
    ("04?.jsonl", {}, 2, {"missing_column": 1}, ["a", "b"], "'question', 'answer'"),
    ("05_bom.csv", {}, 2, {}, ['a, "q"\nline2', "B\r\nB2"], ""),
    ("05_bom.jsonl", {}, 2, {}, ["a", "b"], ""),
    ("06_u2028.jsonl", {}, 2, {}, ["a\u2028b\x85c", "D\r\nE"], ""),
    ("07_bos.jsonl", {}, 2, {}, ["<|begin_of_text|>hello", "<bos>hello <s>500</s>"], ""),
    ("08_gemma.jsonl", {}, 2, {}, ["be brief", "user\nb<"], ""),
    (
        *("11_order.jsonl", {}, 5),
        {
            "no_assistant_turn": 2,
            "no_user_turn": 1,
            "empty_output": 1,
            "system_not_first": 2,
            "no_messages": 2,
            "empty_input": 1,
        },
        *(["Welcome!<|im_end|>\n<|im_start|>user\nb1", "system\ncaps", "system\ndev"], ""),
    ),
    (
        "14_history.jsonl",
        {},
        1,
        {},
        ["system\nBe brief.", "user\nfirst?", "A<|im_end|>\n<|im_start|>user\nand now?"],
        "",
    ),
    ("15_dpo.json", DPO, 1, {}, ["GOOD"], "rejected"),
    ("15_dpo3.jsonl", {"form": "messages", "columns": {"messages": "chosen"}}, 1, {}, ["GOOD"], "rejected"),
    ("16_images.jsonl", {}, 2, {"unread_column": 1, "not_text": 1}, ["A bird.", "user\nin<"], ""),
    ("20_members.jsonl.gz", {}, 2, {}, ["a", "b"], ""),
    ("21_csv.csv", {}, 1, {}, ["user\nq<"], ""),
    ("21_strings.jsonl", {}, 1, {"not_messages": 1}, ["user\nq1<"], ""),
    ("22_surrogates.jsonl", {}, 2, {"not_unicode": 1}, ["A 😀", "nul \0 x"], ""),
    ("35_columns.json", {}, 2, {}, ["user\na<", "user\nb<"], ""),
    ("35_nested.json", {"field": "data"}, 1, {}, ["user\na<"], ""),
    ("35_nested.jsonl", {"field": "data"}, 1, {}, ["user\na<"], ""),
    ("48_cot.jsonl", {}, 2, {}, ["2+2?", "2+3?"], "'cot', 'reasoning'"),
    ("48_keys.jsonl", {}, 1, {"not_messages": 5}, ["user\nq<"], ""),
    (
        "48_keys.jsonl",
        {"message_keys": {"role": "speaker", "content": "text"}},
        1,
        {"not_messages": 5},
        ["user\nq<"],
        "",
    ),
    ("48_keys.jsonl", {"message_keys": {"content": "text"}}, 1, {"not_messages": 5}, ["user\nq<"], ""),
    (
        *("48_keys.jsonl", {"message_keys": {"user": "user", "assistant": "assistant"}}, 2),
        *({"not_messages": 4}, ["user\nhi<"], ""),
    ),
    ("48_keys.jsonl", {"message_keys": {"user": "human", "assistant": "gpt"}}, 2, {"not_messages": 4}, ["yo2<"], ""),
    ("48_multi_answers.jsonl", {}, 1, {"missing_column": 1}, ["only"], "answers"),
    (
        *(
            "48_multi_answers.jsonl",
            {"form": "question_answer", "columns": {"answer": "answers"}, "answers": "each"},
            2,
        ),
        *({"missing_column": 1}, ["\n\na<", "\n\nb<"], "answer"),
    ),
    ("48_query.jsonl", {}, 1, {}, ["user\na<", "b<", "user\n2+2?"], ""),
    ("49_jinja.jsonl", {}, 1, {}, ["Write {{ name }} and {% raw %}"], ""),
    ("54_toolend.jsonl", {}, 2, {"tool_call": 1, "empty_output": 1}, ["<tool_response>\n\n</tool_response>"], ""),
    ("58?.jsonl", {}, 123, {}, ["system\nAnswer as a pirate.<|im_end|>\n<|im_start|>user\np2"], ""),
]


@dataclass(frozen=True)
class Prepared:
    """What became of all cases, in one preparation; source `sN` is case N."""

    manifest: Manifest
    documents: dict[int, list[str]]
    folder: Path


@pytest.fixture(scope="module")
def all_read(case_files, tokenizer, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("cases")
    sources = [{"name": f"s{n}", "path": case[0], **case[1]} for n, case in enumerate(READ)]
    assert prepared(case_files, folder, tokenizer, sources) == 0
    manifest, documents = read_manifest(folder / "out"), defaultdict(list)
    for row in (row for file in shard_files(folder / "out", manifest, "train") for row in read_rows(file)):
        ends = np.cumsum(row["seq_lengths"])
        for source, ids in zip(row["sources"].tolist(), np.split(row["input_ids"], ends)[: len(ends)], strict=True):
            documents[source].append(tokenizer.decode(ids))
    return Prepared(manifest, documents, folder / "out")


@pytest.mark.parametrize("number", range(len(READ)), ids=[f"{n}-{case[0]}" for n, case in enumerate(READ)])
def test_what_is_read(all_read, number):
    _, _, kept, dropped, texts, named = READ[number]
    source = all_read.manifest["sources"][number]
    assert (source["kept"], source["dropped"]) == (kept, dropped)
    assert kept + sum(dropped.values()) == source["rows"]
    documents = all_read.documents[number]
    assert len(documents) == kept
    assert [text for text in texts if not any(text in document for document in documents)] == []
    notes = [note for note in all_read.manifest["notes"] if note.startswith(f"source s{number}:")]
    losses = [note for note in notes if "rows are dropped. The first of each reason:" in note]
    assert bool(losses) == (10 * sum(dropped.values()) > source["rows"])
    note = "".join(note for note in notes if note not in losses)
    assert named in note and bool(named) == bool(note)
    lines = (all_read.folder / f"dropped/s{number}.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["reason"] for line in lines) == dropped


REFUSED = [
    ("15_dpo.json", {}, "column 'chosen' holds an object"),
    ("15_dpo3.jsonl", {}, "These are answers to compare (DPO), and training takes one"),
    ("20_trunc.jsonl.gz", {}, "gzip data that is damaged or cut off"),
    ("35_comma.jsonl", {}, "none of its first 2 rows"),
    ("35_nested.json", {}, "If the rows lie in 'data', say `field: data`"),
    ("35_nested.jsonl", {}, "If the rows lie in 'data', say `field: data`"),
    ("35_nested.json", {"field": "rows"}, "expected `field: rows`"),
    ("35_pretty.jsonl", {}, "is a JSON object; not_json"),
]


@pytest.mark.parametrize(("name", "options", "said"), REFUSED)
def test_what_is_refused(case_files, tmp_path, tokenizer, capsys, name, options, said):
    assert prepared(case_files, tmp_path, tokenizer, [{"name": "s", "path": name, **options}]) == 2
    assert said in capsys.readouterr().err


def test_each_file_is_in_a_table(case_files):
    """But for those about rendering."""
    ours = {file for name, *_ in (*READ, *REFUSED) for file in case_files.glob(name)}
    others = {file.name for file in case_files.iterdir()} - {file.name for file in ours}
    about_rendering = ("09_", "10_", "46_", "52_", "53_", "57_", "59_", "README")
    assert [name for name in sorted(others) if not name.startswith(about_rendering)] == []
