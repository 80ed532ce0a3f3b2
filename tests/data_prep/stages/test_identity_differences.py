"""What differs between two preparations is said by part, file and key."""

from __future__ import annotations

from data_prep.stages.identity_differences import describe_differences

MADE = {
    "recipe": {"seed": 42, "sources": [{"name": "a", "weight": None}, {"name": "b", "weight": 2}]},
    "inputs": {"a": [{"path": "x.jsonl", "size": 8, "mtime_ns": 1}, {"path": "y.jsonl", "size": 8, "mtime_ns": 1}]},
    "quality": {"filters": []},
    "tokenizer": {"sha256": "12", "special_ids": [1, 2]},
    "chat_template_sha256": "34",
    "work_format": 6,
}


def test_each_part_and_value_that_differs_is_named():
    now = {
        **MADE,
        "recipe": {"seed": 1, "sources": [{"name": "b", "weight": 2}, {"name": "a", "weight": 3}], "pii": []},
        "inputs": {"a": [{"path": "x.jsonl", "size": 9, "mtime_ns": 1}, {"path": "z.jsonl", "size": 8, "mtime_ns": 1}]},
        "work_format": 7,
    }
    heads, *lines = describe_differences(MADE, now).splitlines()
    assert heads == "another recipe and other input files and another version of packhaul"
    assert [line.strip() for line in lines] == [
        "recipe: seed: 42, now 1",
        "recipe: sources: a: weight: None, now 3",
        "recipe: pii: not there, now []",
        "inputs: a: x.jsonl: size: 8, now 9",
        "inputs: a: y.jsonl: {'path': 'y.jsonl', 'size': 8, 'mtime_ns': 1}, now not there",
        "inputs: a: z.jsonl: not there, now {'path': 'z.jsonl', 'size': 8, 'mtime_ns': 1}",
        "work_format: 6, now 7",
    ]


def test_an_order_alone_is_a_difference():
    now = {**MADE, "recipe": {"seed": 42, "sources": MADE["recipe"]["sources"][::-1]}}
    assert "recipe: sources: in another order" in describe_differences(MADE, now)


def test_many_are_counted_and_what_is_unknown_is_said():
    inputs = {"a": [{"path": f"{i}.jsonl", "size": 1} for i in range(100)]}
    assert describe_differences(MADE, {**MADE, "inputs": inputs}).splitlines()[-1] == "  and 92 more"
    old = {"recipe": MADE["recipe"]}
    assert describe_differences(old, MADE).startswith("one of these: other input files, other evaluation files")
