"""Byte-level BPE tokenizers as Qwen's and GPT-2's are, trained in a moment."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.tokenization.proof_texts import hard_texts

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [*hard_texts(), "the quick brown fox jumps over the lazy dog. " * 20, "안녕하세요, 한국어 문장입니다. " * 20]


def make_tokenizer(pattern=QWEN_PATTERN, normalizer=None, added=(), vocab_size=1500):
    """A `tokenizers.Tokenizer` trained on CORPUS, with two special tokens and those `added`."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens(list(added))
    return backend
