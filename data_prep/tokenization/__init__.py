"""Text to token ids and offsets: the tokenizer, the faster encoder, and the proof that both are equal."""
