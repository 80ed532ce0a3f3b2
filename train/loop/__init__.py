"""The training loop's parts: trainer and loss, data, evaluation, metrics, bad steps, W&B."""
