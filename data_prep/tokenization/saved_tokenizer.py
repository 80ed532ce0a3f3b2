"""The tokenizer next to the shards: its own files where they give the same tokenizer, which encodes as those did.

transformers 5 writes a tokenizer otherwise than it was published: tokenizer.json anew, other names in
tokenizer_config.json. Serving engines with an older transformers then read another tokenizer, or none.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.strict_files import replace_member
from data_prep.tokenization.proof_texts import hard_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_NEEDED = ("tokenizer.json", _CONFIG)
# What a tokenizer's class may read next to them. Further templates are left out: nothing was rendered with them.
_FILES = (
    *_NEEDED,
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", _TEMPLATE),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_AS_IT_IS = "TokenizersBackend"  # transformers' class that takes tokenizer.json as it stands
_LENGTHS = ("truncation", "padding")  # which no text here is encoded with


def save_exactly(tokenizer: PreTrainedTokenizerBase, folder: Path, revision: str | None = None) -> bool:
    """Save it as training and serving will read it: its own files byte for byte, but for another chat template.

    Where its own files do not give this tokenizer, as without a tokenizer.json, it is written by transformers.

    Args:
        revision: of a tokenizer on the hub.

    Returns:
        Whether these are its own files.

    Raises:
        ValueError: it still encodes in another way.
    """
    source = _own_folder(tokenizer.name_or_path, revision)
    if source is not None:
        _copy(source, folder, tokenizer.chat_template)
        if _is_same(tokenizer, folder):
            return True
        shutil.rmtree(folder)
    _write_anew(tokenizer, folder)
    return False


def _own_folder(name: str, revision: str | None) -> Path | None:
    """Where its files are: a folder, or what the hub's cache has of it; None where one that is needed is missing."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(name, _CONFIG, revision=revision)
        except HFValidationError:  # no name on the hub
            return None
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return folder if all((folder / needed).is_file() for needed in _NEEDED) else None


def _copy(source: Path, folder: Path, template: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if isinstance(template, str):
        _put_template(folder, template)


def _put_template(folder: Path, template: str) -> None:
    """Make it the tokenizer's. Older programs read it in tokenizer_config.json, so one that is there is replaced."""
    config, file = folder / _CONFIG, folder / _TEMPLATE
    text = config.read_bytes().decode()
    inside = json.loads(text).get("chat_template")
    if template == (file.read_bytes().decode() if file.exists() else inside):
        return
    file.write_bytes(template.encode())
    if inside is not None:
        config.write_bytes(replace_member(text, "chat_template", template).encode())


def _is_same(tokenizer: Any, folder: Path) -> bool:
    """Whether the files in the folder are read as this tokenizer."""
    from transformers import AutoTokenizer

    try:
        saved: Any = AutoTokenizer.from_pretrained(folder)
    except Exception:  # of whichever class reads it; then it is written anew
        return False
    if not _are_alike(saved.backend_tokenizer, tokenizer.backend_tokenizer):
        return False
    names = ("chat_template", "special_tokens_map", "all_special_ids", "added_tokens_decoder", "padding_side")
    return all(getattr(saved, name) == getattr(tokenizer, name) for name in names)


def _write_anew(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """As transformers writes it, and read again.

    A class of transformers can build another tokenizer from what it wrote: that of Llama 2 forgets that a space goes
    before the text after each control token. Then the class is left out, and tokenizer.json alone counts.
    """
    tokenizer.save_pretrained(folder)
    if _differs(tokenizer, folder) is not None:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        changed = json.dumps({**config, "tokenizer_class": _AS_IT_IS}, ensure_ascii=False, indent=2)
        (folder / _CONFIG).write_text(changed + "\n", encoding="utf-8")
        if (text := _differs(tokenizer, folder)) is not None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} encodes {text!r} in another way once it is saved and read "
                "again, so a model would be served with other tokens than it was trained on: give another copy of it"
            )


def _differs(tokenizer: Any, folder: Path) -> str | None:
    """A text that the tokenizer in the folder encodes in another way; None: it is the same."""
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    if _are_alike(saved, tokenizer.backend_tokenizer):
        return None
    saved.no_padding()
    saved.no_truncation()
    texts = list(hard_texts(tokenizer.all_special_tokens))
    ours, theirs = (t.encode_batch(texts, add_special_tokens=False) for t in (tokenizer.backend_tokenizer, saved))
    return next((text for text, one, two in zip(texts, ours, theirs, strict=True) if one.ids != two.ids), None)


def _are_alike(backend: Any, other: Any) -> bool:
    """Whether both encode alike. Most are the same to the letter: to parse 33 MB of Gemma's twice takes seconds."""
    one, two = backend.to_str(), other.to_str()
    return one == two or _description(one) == _description(two)


def _description(serialised: str) -> dict[str, Any]:
    whole = json.loads(serialised)
    return {part: value for part, value in whole.items() if part not in _LENGTHS}
