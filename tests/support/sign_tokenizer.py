"""BPE tokenizers that write spaces as a sign and unknown characters as bytes, as Gemma's do, trained in a moment."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.support.byte_level_tokenizer import CORPUS


def make_sign_tokenizer(added=(), change=lambda described: None):
    """A `tokenizers.Tokenizer` trained on CORPUS that knows 100 characters, the bytes, and two special tokens.

    Args:
        change: changes its JSON before it is made.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # only while it is trained
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=900, limit_alphabet=100, special_tokens=pieces, show_progress=False),
    )
    described = json.loads(backend.to_str())
    described["added_tokens"] = []
    described["pre_tokenizer"] = None
    described["model"].update(byte_fallback=True, fuse_unk=True)
    change(described)
    backend = Tokenizer.from_str(json.dumps(described))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<start_of_turn>", "<end_of_turn>")])
    backend.add_tokens(list(added))
    return backend
