"""The loss of each document of a split under a model."""
