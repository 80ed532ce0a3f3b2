"""What leaves training: exported weights and tokenizer, and a model that answers."""
