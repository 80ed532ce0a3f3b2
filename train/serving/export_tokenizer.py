"""The tokenizer of an export: its files, its chat template for serving, and the generation config.

The training template marks what the model says with `{% generation %}`, a tag that transformers knows and many serving
engines do not. Each mark becomes a comment with the same whitespace control, so the text rendered stays the same; that
is checked on probe conversations.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.strict_files import replace_member
from train.run.atomic_files import write_json_atomically
from train.serving.older_readers import with_old_tokenizer_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
)
PROBES = (
    [{"role": "user", "content": "사과는 왜 빨간가요? 🍎"}],
    [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "\n  b \n\n"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "a"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n{{ d }}"},
        {"role": "assistant", "content": "e {% f %}"},
    ],
    [{"role": "user" if i % 2 == 0 else "assistant", "content": f"turn {i}"} for i in range(7)],
)

# What Jinja reads as one unit, tried from left to right, so that a mark inside a comment, a raw block or a string of an
# expression is left alone.
_UNITS = re.compile(
    r"""\{\#.*?\#\}
      | \{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}
      | \{%(?P<before>[-+]?)\s*(?:end)?generation\s*(?P<after>[-+]?)%\}
      | \{\{(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"])*?\}\}
      | \{%(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"])*?%\}""",
    re.DOTALL | re.VERBOSE,
)


def strip_generation_marks(template: str) -> str:
    """Replace `{% generation %}` and `{% endgeneration %}` by empty comments with the same whitespace control."""

    def replace(unit: re.Match[str]) -> str:
        if unit["before"] is None:
            return unit[0]
        return f"{{#{unit['before']} {unit['after']}#}}"

    return _UNITS.sub(replace, template)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files from `source` byte for byte, but for the marks in its chat templates and names in
    tokenizer_config.json that older programs do not know.

    Raises:
        ValueError: `source` has no tokenizer, or the template without marks renders something else.
    """
    if not (source / "tokenizer_config.json").exists():
        raise ValueError(f"{source}: expected a tokenizer (tokenizer_config.json), found none")
    for name in TOKENIZER_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        elif (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    for path in [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]:
        if path.exists():
            path.write_bytes(strip_generation_marks(path.read_bytes().decode()).encode())
    _write_config(folder / "tokenizer_config.json")
    check_same_rendering(source, folder)


def check_same_rendering(source: Path, folder: Path) -> None:
    """Compare the tokenizers in two folders: their special tokens, and PROBES with and without the generation prompt,
    as text and ids.

    Raises:
        ValueError: no chat template, other special tokens, or one probe comes out differently.
    """
    from transformers import AutoTokenizer

    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(source)
    if not theirs.chat_template:
        raise ValueError(f"{source}: the tokenizer has no chat template, so nothing could ask the model a question")
    specials, expected_specials = ours.special_tokens_map, theirs.special_tokens_map
    if specials != expected_specials or ours.all_special_ids != theirs.all_special_ids:
        raise ValueError(
            f"{folder}: the tokenizer has the special tokens {specials}, that of {source} {expected_specials}"
        )
    for messages in PROBES:
        for prompt in (False, True):
            expected, found = _render(theirs, messages, prompt), _render(ours, messages, prompt)
            if expected != found:
                raise ValueError(
                    f"the exported chat template renders {messages} (generation prompt: {prompt}) as {found[0]!r}, the "
                    f"training template in {source} as {expected[0]!r}: change the template so that nothing is set "
                    "inside its generation marks that is used outside"
                )


def end_token_ids(source: Path) -> list[int]:
    """Ids that end an assistant turn, read off the chat template of the tokenizer in `source`.

    Raises:
        ValueError: the template has no generation marks and does not end an answer with the tokenizer's own end either.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if "generation" in (tokenizer.chat_template or ""):
        encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        said = [i for i, trained in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if trained]
        if said and said[-1] in tokenizer.added_tokens_decoder:
            return said[-1:]
    last = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"][-3:]
    if tokenizer.eos_token_id in last:
        return [tokenizer.eos_token_id]
    raise ValueError(
        f"{source}: nothing says which token ends an answer, so the model would never stop: give the shard directory "
        "of the run with --data"
    )


def write_generation_config(folder: Path, end_ids: list[int]) -> dict[str, Any]:
    """Put our token ids into generation_config.json of `folder`; the sampling defaults that are there stay.

    The model stops at every id that ends an answer and at the tokenizer's own end. Other ids that the file stops at are
    not kept: a model made from a config names an id there that may be an ordinary word of this tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    own_end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stops = list(dict.fromkeys([*end_ids, *own_end]))
    pad = stops[-1] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    config |= {"eos_token_id": stops, "pad_token_id": pad, "bos_token_id": tokenizer.bos_token_id}
    config.pop("_from_model_config", None)
    config = {k: v for k, v in config.items() if v is not None}
    write_json_atomically(path, config)
    return config


def _write_config(path: Path) -> None:
    """Change only what has to be: older tokenizers keep the template, or a list of named ones, in it."""
    text = path.read_bytes().decode()
    config = json.loads(text)
    template = _without_marks(config.get("chat_template"))
    if template != config.get("chat_template"):
        text = replace_member(text, "chat_template", template)
        path.write_bytes(text.encode())
    named = with_old_tokenizer_names(json.loads(text))
    if named != json.loads(text):
        write_json_atomically(path, named)


def _without_marks(template: Any) -> Any:
    """Of one template, or of a list of named ones."""
    if isinstance(template, str):
        return strip_generation_marks(template)
    return template and [{**named, "template": strip_generation_marks(named["template"])} for named in template]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], prompt: bool) -> tuple[str, list[int]]:
    from jinja2.exceptions import TemplateError

    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:  # a template may refuse a system message; then both have to
        return f"{type(error).__name__}: {error.message}", []
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]
