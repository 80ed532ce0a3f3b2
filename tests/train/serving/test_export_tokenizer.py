"""train.serving.export_tokenizer: chat templates without marks, and what ends an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_prep.tokenization.saved_tokenizer import save_exactly
from tests.support.export_runs import add_checkpoint, run_export
from train.serving.export_tokenizer import (
    PROBES,
    check_same_rendering,
    copy_tokenizer,
    end_token_ids,
    strip_generation_marks,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("template", "stripped"),
    [
        ("{% generation %}a{% endgeneration %}", "{# #}a{# #}"),
        ("{%- generation -%} a {%-endgeneration-%}", "{#- -#} a {#- -#}"),
        ("{%+ generation +%} a {%+  endgeneration  %}", "{#+ +#} a {#+ #}"),
        ("{# {% generation %} #}{% raw %}{% generation %}{% endraw %}", None),
        ("{{ '{% generation %}' }}{{ \"}} {% generation %} it's\" }}{% set x = '%}{% generation %}' %}", None),
        ("{% set generation = 1 %}{{ generation }}", None),
    ],
)
def test_marks_become_comments_with_the_same_whitespace_control(template, stripped):
    assert strip_generation_marks(template) == (template if stripped is None else stripped)


TEMPLATES = sorted((ROOT / "data_prep" / "templates").glob("*.jinja"))


def assert_same_text_and_plain_jinja(template: str, tokenizer) -> None:
    """The stripped template renders the same, and needs no tag that Jinja itself does not have."""
    import jinja2

    stripped = strip_generation_marks(template)
    assert stripped != template
    jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(stripped)
    rendered = 0
    for messages in PROBES:
        for prompt in (False, True):
            texts = []
            for candidate in (template, stripped):
                try:
                    texts.append(
                        tokenizer.apply_chat_template(
                            messages, chat_template=candidate, tokenize=False, add_generation_prompt=prompt
                        )
                    )
                except jinja2.TemplateError as error:
                    texts.append(error.message)
            assert texts[0] == texts[1]
            rendered += "turn 6" in texts[1]
    assert rendered == 2  # it really rendered


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_built_in_templates_without_marks_render_the_same(path, tiny_tokenizer):
    template = path.read_text(encoding="utf-8").replace("__BOS__", "bos_token").replace("__EMPTY_REASONING__", "true")
    assert_same_text_and_plain_jinja(template, tiny_tokenizer)


def test_published_templates_without_marks_render_the_same(shared_data, tiny_tokenizer):
    marked = sorted((shared_data / "chat_templates").glob("*_training.jinja"))
    assert len(marked) >= 3
    for path in marked:
        assert_same_text_and_plain_jinja(path.read_text(encoding="utf-8"), tiny_tokenizer)


def test_a_template_that_sets_something_inside_its_marks_is_refused(
    tiny_run, tiny_shards, tiny_model_dir, tmp_path, capsys
):
    """Inside marks `set` is local; without them it would leak into the rest."""
    leaking = (
        "{% set x = 'a' %}{% for m in messages %}{{ m.content }}"
        "{% generation %}{% set x = 'b' %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}"
    )
    (tiny_shards / "tokenizer" / "chat_template.jinja").write_text(leaking)
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    with pytest.raises(SystemExit, match="nothing is set inside its generation marks"):
        run_export(tiny_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_template_inside_tokenizer_config_is_stripped_too(tiny_shards, tmp_path):

    source = tiny_shards / "tokenizer"
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    config = json.loads((source / "tokenizer_config.json").read_text())
    for kept_as in (template, [{"name": "default", "template": template}, {"name": "x", "template": template}]):
        (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": kept_as}))
        folder = tmp_path / type(kept_as).__name__
        folder.mkdir()
        copy_tokenizer(source, folder)
        assert "generation %}" not in (folder / "tokenizer_config.json").read_text()
        assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


MARKED = (
    "{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% if tools %}é {{ tools }}{% endif %}{% endfor %}"
)


def with_marked_template(folder: Path, to: Path) -> Path:
    """What preparation leaves of a published tokenizer when the template marks answers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = MARKED
    save_exactly(tokenizer, to)
    return to


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "llama2", "mistral_v3_spm", "qwen3"])
def test_published_files_are_exported_as_they_are(name, shared_data, tmp_path):
    published, shards = (
        shared_data / "tokenizers" / name,
        with_marked_template(shared_data / "tokenizers" / name, tmp_path / "shards"),
    )
    (tmp_path / "out").mkdir()
    copy_tokenizer(shards, tmp_path / "out")
    before, after = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (published, tmp_path / "out"))
    stripped = strip_generation_marks(MARKED)
    assert after.pop("chat_template.jinja") == stripped.encode()
    config, exported = before.pop("tokenizer_config.json").decode(), after.pop("tokenizer_config.json").decode()
    assert after == before
    if "TokenizersBackend" in config:  # a name that transformers 4 does not know
        assert json.loads(exported) == {**json.loads(config), "tokenizer_class": "PreTrainedTokenizerFast"}
    else:
        old = json.loads(config).get("chat_template")
        assert exported == (
            config if old is None else config.replace(written(config), json.dumps(stripped, ensure_ascii=False))
        )


def written(config: str) -> str:
    """The chat template as it stands in the text of a tokenizer_config.json."""
    start = config.index('"chat_template":') + len('"chat_template":')
    start += len(config[start:]) - len(config[start:].lstrip())
    return config[start : json.JSONDecoder().raw_decode(config, start)[1]]


def test_nothing_is_written_where_nothing_changes(shared_data, tmp_path):
    """A template without marks, whose name and place older programs know."""
    source = shutil.copytree(shared_data / "tokenizers" / "qwen3", tmp_path / "shards")
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out")
    assert all((tmp_path / "out" / p.name).read_bytes() == p.read_bytes() for p in source.iterdir())


def test_another_tokenizer_does_not_pass_for_the_same(tiny_shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_shards / "tokenizer", other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the exported chat template renders"):
        check_same_rendering(tiny_shards / "tokenizer", other)


def test_the_end_of_an_answer_is_read_off_the_template(tiny_shards, tmp_path):
    source = tiny_shards / "tokenizer"
    assert end_token_ids(source) == [3]
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").write_text(strip_generation_marks(template))
    assert end_token_ids(source) == [3]  # no marks, but an answer ends with the tokenizer's own end
    (source / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<pad>"))
    assert end_token_ids(source) == [0]  # the mark counts, not eos
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="--data"):
        end_token_ids(source)


def test_it_stops_at_what_ends_an_answer_and_at_the_tokenizers_own_end(tiny_run, tiny_shards, tiny_model_dir, tmp_path):
    """As with Gemma: answers end with one token, documents of the base model with another."""
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    (tiny_shards / "manifest.json").write_text(json.dumps({**manifest, "end_token_ids": [2]}))
    (tiny_run / "run.json").write_text(json.dumps({"data": str(tiny_shards)}))
    add_checkpoint(tiny_run, 1, tiny_model_dir("llama"))
    run_export(tiny_run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2, 3]
