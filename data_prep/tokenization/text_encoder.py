"""TextEncoder: text to ids and offsets, by the fast encoder if there is one for the text, else by `tokenizers`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from data_prep.tokenization.encoded_text import EncodedText, OffsetTokens
from data_prep.tokenization.tokenizer_json import with_special

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from data_prep.tokenization.fast_encoder import FastEncoder, FastTokens

FAST_ENCODERS = ("fastokens", "tiktoken")  # the fastest first; each is a module, NAME_encoder
_CACHED_WORDS = 100_000
_HELD_TOKENS = 1 << 19  # whose encodings are never freed: 50 to 100 MB (see TextEncoder._hold)


class TextEncoder:
    """Encodes texts without adding special tokens: by the fast encoder where there is one that takes the text.

    Pickles small enough to send to a worker, which loads the tokenizer at once, or where there is a fast encoder only
    when a text needs it.

    Args:
        backend: padding and truncation, which a tokenizer.json may bring along, are switched off in it.
    """

    def __init__(self, backend: Tokenizer):
        # Padding would fill the texts of a call up to the longest; truncation would cut them without a message.
        backend.no_padding()
        backend.no_truncation()
        _widen_cache(backend)
        self._backend: Tokenizer | None = backend
        self._serialised = ""
        self._fast: FastEncoder | None = None
        self._looks_words_up = False
        self._held: list[Encoding] = []
        self._held_tokens = 0

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of `tokenizers`."""
        if self._backend is None:
            from tokenizers import Tokenizer

            self._backend = Tokenizer.from_str(self._serialised)
            _widen_cache(self._backend)
            if self._looks_words_up:
                model: Any = self._backend.model
                model.ignore_merges = True
        return self._backend

    @property
    def name(self) -> str:
        """Which encoder it is, for people and manifests."""
        return self._fast.name if self._fast else f"tokenizers {version('tokenizers')}"

    def use_fast(
        self, sample: Sequence[str], encoders: Sequence[str] = FAST_ENCODERS, special: Collection[str] = ()
    ) -> str | None:
        """Encode with a faster encoder from now on: the first that there is for this tokenizer and is proven exact.

        Args:
            sample: texts of the run itself, on which it has to agree as well.
            encoders: some of FAST_ENCODERS.
            special: added tokens that are special to the fast encoder, whatever they are to the tokenizer.

        Returns:
            Why those before it are not used, or all of them, and `tokenizers` goes on to encode; None if the first is.
        """
        self._serialised = self.backend.to_str()
        serialised = with_special(self._serialised, special)
        refused = []
        for name in encoders:
            built = import_module(f"data_prep.tokenization.{name}_encoder").build(self.backend, serialised)
            reason = built if isinstance(built, str) else built.check(sample, self.backend)
            if not reason:
                self._fast = built
                break
            refused.append(f"{name}: {reason}")
        return "; ".join(refused) or None

    def encodes_special_as_text(self, texts: Iterable[str], tokenizer: Tokenizer) -> bool:
        """Whether the fast encoder answers with special tokens as text, and as `tokenizers` does, on these texts.

        Args:
            tokenizer: the same one, set to encode special tokens as text.
        """
        if self._fast is None or self._fast.encode_special_as_text([""]) == [None]:
            return False
        return self._fast.check(texts, tokenizer) is None

    def encode_special_as_text(self, texts: list[str]) -> list[FastTokens | None]:
        """By the fast encoder, with special tokens as the text that they are; None where it cannot."""
        return self._fast.encode_special_as_text(texts) if self._fast else [None for _ in texts]

    @property
    def is_fast(self) -> bool:
        """Whether a faster encoder is used."""
        return self._fast is not None

    def look_words_up(self) -> bool:
        """From now on, look a word that is a token up instead of merging it, if that is proven the same. It saves a
        sixth of the time of `tokenizers`. Only this copy does so: the tokenizer that is saved stays as it is.

        Returns:
            Whether it does.
        """
        if self._fast is None and merges_make_all(self.backend):
            self._serialised = self.backend.to_str()
            self._looks_words_up, self._backend = True, None
        return self._looks_words_up

    def encode_batch(self, texts: list[str]) -> list[EncodedText]:
        """Encode the texts, in order."""
        encoded: list[EncodedText | None] = [None for _ in texts]
        if self._fast:
            encoded[:] = self._fast.encode_batch(texts)
        rest = [i for i, one in enumerate(encoded) if one is None]
        if rest:
            encodings = self.backend.encode_batch([texts[i] for i in rest], add_special_tokens=False)
            self._hold(encodings)
            for i, encoding in zip(rest, encodings, strict=True):
                encoded[i] = OffsetTokens(encoding)
        return [one for one in encoded if one is not None]

    def _hold(self, encodings: list[Encoding]) -> None:
        """We never free the first encodings: freeing them fragments the heap around the words that `tokenizers`
        remembers, and slows later calls by 20 %."""
        for encoding in encodings:
            if self._held_tokens + len(encoding) > _HELD_TOKENS:
                return
            self._held.append(encoding)
            self._held_tokens += len(encoding)

    def __getstate__(self) -> dict[str, Any]:
        serialised = self._serialised or self.backend.to_str()
        return self.__dict__ | {"_backend": None, "_serialised": serialised, "_held": [], "_held_tokens": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._fast is None:
            self._backend = self.backend


def merges_make_all(backend: Tokenizer) -> bool:
    """Whether each token of the vocabulary is what merging makes of the token's own characters. Then a word that is a
    token encodes as it, and may be looked up: the model's `ignore_merges`."""
    from tokenizers import models

    model: Any = backend.model
    if not isinstance(model, models.BPE) or model.ignore_merges or model.dropout:
        return False
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return all([made.id for made in model.tokenize(token)] == [number] for token, number in vocabulary.items())


def _widen_cache(backend: Tokenizer) -> None:
    """Let `tokenizers` remember more merged words than its first 10,000, which saves a fifteenth of the time. Only what
    it remembers changes, not what it answers."""
    # BPE and Unigram have a cache.
    if hasattr(backend.model, "_resize_cache"):
        backend.model._resize_cache(_CACHED_WORDS)
