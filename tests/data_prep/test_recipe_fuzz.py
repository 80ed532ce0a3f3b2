"""Whatever a recipe file holds: a recipe, or one ValueError that says what is wrong. No other exception, no hang."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import prepare
from data_prep.quality.decontamination import Decontaminate
from data_prep.quality.filters import Filters
from data_prep.quality.near_duplicates import NearDuplicates
from data_prep.recipe import Recipe, Source, load_recipe
from tests.conftest import LOADED, ROOT

SECONDS = 60  # of this process's time for one recipe, whatever else runs; the slowest takes about five
GOOD = {"tokenizer": "t", "sources": [{"name": "a", "path": "a.json"}]}
HEAD = "tokenizer: t\nsources: [{name: a, path: a.json}]\n"
# Ten in each of ten, ten levels deep: ten billion values in four lines.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(10))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(10))


def outcome(path: Path) -> Recipe | str:
    """The recipe, or the message of its ValueError."""
    signal.signal(signal.SIGVTALRM, signal.default_int_handler)  # KeyboardInterrupt
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        return load_recipe(path)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"recipe {path}") and len(message) < 60_000
        message.encode()
        return message
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: " + "[" * 100_000, "nested too deeply"),
        (HEAD + "a: " + "{a: " * 50_000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(600)), "nested too deeply"),
        (HEAD + "seed: " + "9" * 5000, "a number of 5000 characters on line 3"),
        (HEAD + "seed: 0x" + "f" * 5000, "a number of 5002 characters on line 3"),
        (HEAD + "seed: " + "1:" * 50_000 + "1", "a number of 100001 characters"),
        (HEAD + "seed: 1e400", "seed: "),
        (HEAD + "total_tokens: " + "9" * 99, "total_tokens: Input should be less than"),
        (HEAD + "max_repeats: .inf", "max_repeats: Input should be a finite number"),
        (HEAD + "eval_fraction: .nan", "eval_fraction: Input should be a finite number"),
        (HEAD + "near_duplicates: {threshold: .nan}", "near_duplicates.threshold: "),
        (HEAD + "near_duplicates: {treshold: 1}", "near_duplicates.treshold: unknown key; did you mean 'threshold'?"),
        (HEAD + "filters: {must_match: ['" + "(" * 50_000 + ")" * 50_000 + "']}", "is not a regular expression"),
        (HEAD + "\0", "unacceptable character #x0000"),
        (HEAD.encode("utf-16"), "not readable as text"),
        (b'tokenizer: "\xed\xa0\x80"', "not readable as text"),
        (HEAD + 'chat_template: "\\ud800"', "half a character"),
        (BOMB + HEAD, "aliases stand for more than"),
        (MERGES + HEAD, "aliases stand for more than"),
        ("tokenizer: t\nsources: &a [*a]", "aliases stand for more than"),
        ("&a\ntokenizer: t\nsources: *a", "aliases stand for more than"),
        (HEAD + "x: &a\n  <<: *a", "aliases stand for more than"),
        (HEAD + "seed: !!bool abc", "not usable as YAML"),
        (HEAD + "seed: !!int ''", "not usable as YAML"),
        (HEAD + "seed: !!timestamp x", "not usable as YAML"),
        (HEAD + "seed: 2001-99-99", "month must be in 1..12"),
        ("!!map [a]", "not usable as YAML"),
        ("!!python/object/apply:os.system ['exit 1']", "could not determine a constructor"),
        ("? [a]\n: b", "found unhashable key"),
        (HEAD + "---\n" + HEAD, "expected a single document"),
        ("tokenizer: t\nsources: [{name: a, path: '" + "${" * 100_000 + "'}]", "at most 4096 characters"),
        ("tokenizer: t\nsources: [" + "{}, " * 5000 + "]", "and 4980 more"),
        ("tokenizer: t\nsources:\n" + "- {name: a, path: b}\n" * 5000, "two sources are named 'a'"),
        ("", "tokenizer: Field required"),
        ("a: " + "x" * 100_000_000, "is it the data?"),
    ],
    ids=range(35),
)
def test_hostile_recipes_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in str(outcome(path))
    assert prepare.main(["--recipe", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prepare: error: recipe {path}") and error.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_depth_is_the_files_and_not_the_interpreters(tmp_path):
    """Whoever compiles a model raises the interpreter's limit; the same file is refused, and one of 90 levels read."""
    limit = sys.getrecursionlimit()
    path = tmp_path / "recipe.yaml"
    try:
        sys.setrecursionlimit(10 * limit)
        path.write_text("\n".join(" " * i + "a:" for i in range(101)))
        assert "nested too deeply: more than 100 levels on line 100" in str(outcome(path))
        path.write_text(HEAD + "a: " + "[" * 90 + "]" * 90)
        assert "unknown key" in str(outcome(path))
    finally:
        sys.setrecursionlimit(limit)


def test_the_command_exits_without_a_traceback(tmp_path):
    (tmp_path / "recipe.yaml").write_text(BOMB + '"\\ud800": &a [*a')
    for path in (tmp_path / "recipe.yaml", tmp_path, "/dev/zero", tmp_path / "none.yaml"):
        command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(path), "--output", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"prepare: error: recipe {path}: ") and "Traceback" not in done.stderr


# Properties.

PROPERTY = settings(deadline=None, suppress_health_check=LOADED, max_examples=300)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "$A", "${", "~", "a.json", "4096", "1e3", "auto", "\0", "(", "x" * 99]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -(2**63), 2**63, 2**53, 1e308, 5e-324, -0.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.dates() | st.binary(max_size=4),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS | st.integers(), v, max_size=3),
    max_leaves=6,
)
NESTED = {"filters": Filters, "near_duplicates": NearDuplicates, "decontaminate": Decontaminate}


def fields_of(model) -> st.SearchStrategy[dict]:
    """Some of a model's fields, with values of any type."""
    inner = {name: VALUES | fields_of(NESTED[name]) for name in model.model_fields if name in NESTED}
    one = st.sampled_from(sorted(model.model_fields)).flatmap(
        lambda name: st.tuples(st.just(name), inner.get(name, VALUES))
    )
    return st.lists(one, max_size=4).map(dict)


@PROPERTY
@given(fields_of(Recipe), st.lists(fields_of(Source), min_size=1, max_size=2), st.booleans())
def test_values_of_any_type_in_any_field(tmp_path, fields, sources, is_wrong):
    path = tmp_path / "recipe.yaml"
    named = [{"name": f"a{i}", "path": "a.json", **({} if is_wrong else s)} for i, s in enumerate(sources)]
    path.write_text(yaml.safe_dump({**GOOD, "sources": named, **fields}), encoding="utf-8")
    result = outcome(path)
    if isinstance(result, Recipe):  # and then it can be written into the manifest and read again
        path.write_text(result.model_dump_json(), encoding="utf-8")
        assert load_recipe(path) == result


PIECES = [
    "tokenizer",
    "sources",
    "seed",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    '"',
    "'",
    "&a ",
    "*a",
    "<<: ",
]
PIECES += [
    "? ",
    "!!int ",
    "!!map ",
    "!!",
    "|\n",
    ">-\n",
    "#",
    "---\n",
    "%YAML 1.1\n",
    "\t",
    "0x",
    "1_0",
    ":",
    "~",
    "\\ud800",
]
PIECES += [".inf", "2001-01-01", "\ufeff", "\x85", "\u2028", "\0", "\U0010ffff", "가"]


@PROPERTY
@given(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join).map(str.encode) | st.binary(max_size=60), st.booleans()
)
def test_any_bytes(tmp_path, content, is_behind_a_good_one):
    path = tmp_path / "recipe.yaml"
    path.write_bytes((HEAD.encode() if is_behind_a_good_one else b"") + content)
    outcome(path)
