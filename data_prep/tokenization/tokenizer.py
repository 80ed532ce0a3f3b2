"""A tokenizer of transformers: loading it, its special tokens, and the hashes that identify it."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_prep.shards import TokenizerIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_NO_TORCH = "PyTorch was not found"  # begins what transformers says without it
_left_out: list[str] = []


def leave_out_torch() -> None:
    """Load tokenizers without torch, which takes more than half of a start. It cannot be undone: transformers has no
    models in this process, so call it where no function of the user's may want one."""
    if "transformers" not in sys.modules and "torch" not in sys.modules:
        _left_out.append("torch")


@contextmanager
def _without_torch() -> Iterator[None]:
    """transformers, imported within, finds no torch. Others find it afterwards."""
    if not _left_out or "transformers" in sys.modules:
        yield
        return
    logging.getLogger("transformers").addFilter(lambda record: _NO_TORCH not in str(record.msg))
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer from a folder or the hub.

    Raises:
        ValueError: it cannot be loaded, it has no fast (Rust) form, without which there are no exact offsets, or it is
            set to take control tokens for text.
    """
    with _without_torch():
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer {name!r} cannot be loaded: expected a folder with tokenizer.json or a hub id that this machine "
            f"can reach (log in with `hf auth login` for gated ones). Found: {error}"
        ) from None
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {name!r} has no tokenizer.json: convert it to a fast tokenizer first")
    if tokenizer.init_kwargs.get("split_special_tokens"):
        raise ValueError(
            f"tokenizer {name!r}: tokenizer_config.json says split_special_tokens: true, by which control tokens are "
            "encoded as text, so that no answer ends in one: remove it there, in a copy"
        )
    return tokenizer


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text -> id of the control tokens: the added tokens marked special."""
    return {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> TokenizerIdentity:
    """Hashes that identify a tokenizer: of all of it, and of its vocabulary alone (token -> id)."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True).encode()
    whole = tokenizer.backend_tokenizer.to_str().encode()
    return {
        "name": tokenizer.name_or_path,
        "sha256": hashlib.sha256(whole).hexdigest(),
        "vocab_sha256": hashlib.sha256(vocabulary).hexdigest(),
        "size": len(tokenizer),
    }
