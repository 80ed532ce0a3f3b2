"""The quickstart's own tokenizer and its untrained model, in place of a hub model's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# A word takes the space before it along; digits, punctuation and other white space stand alone.
PIECES = r" ?\p{L}+|\p{N}|\n+|[^\s\p{L}\p{N}]|\s"
MIN_FREQUENCY = 500  # a word seen so often belongs to the instructions, whatever is rarer is a word to be worked on
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}


def train_tokenizer(files: Iterable[Path], folder: Path) -> int:
    """Train a tokenizer on Alpaca-form JSONL files and save it; the vocabulary's size.

    Frequent words become one token each, all others are spelled in characters, so that a model can see and copy them.
    Characters that training never saw are spelled in bytes: any text encodes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    # ignore_merges: a piece that is in the vocabulary is one token; with no merges, all others are single characters.
    model = models.BPE(vocab=_vocabulary(files, pieces), merges=[], ignore_merges=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=TURN_END, additional_special_tokens=[TURN_START]
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _vocabulary(files: Iterable[Path], pieces: Any) -> dict[str, int]:
    from tokenizers import Tokenizer, models, trainers

    counter = Tokenizer(models.WordLevel())
    counter.pre_tokenizer = pieces
    trainer = trainers.WordLevelTrainer(min_frequency=MIN_FREQUENCY, vocab_size=1000, show_progress=False)
    texts = list(_texts(files))
    counter.train_from_iterator(texts, trainer)
    words = sorted(counter.get_vocab())
    characters = sorted(set("".join(texts)))
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = dict.fromkeys([PAD, TURN_START, TURN_END, *in_bytes, *characters, *words])
    return {token: index for index, token in enumerate(tokens)}


def _texts(files: Iterable[Path]) -> Iterator[str]:
    """Rows as ChatML renders them, without the control tokens."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield f"user\n{row['instruction']}\n\n{row['input']}"
            yield f"assistant\n{row['output']}"


def make_model(tokenizer_dir: Path, folder: Path, *, seed: int = 42) -> int:
    """Save a Qwen3 of half a million random weights, with the tokenizer; the number of parameters."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = Qwen3Config(
        **SIZES,
        vocab_size=len(tokenizer),
        num_key_value_heads=SIZES["num_attention_heads"],
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # The usual 0.02 is for models ten times as wide: at this width nothing is learnt for hundreds of steps.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()
