"""How much memory a training run needs on each GPU, by part, without a GPU and without the weights."""
