"""The page of a run: what it learnt, how fast, and from what."""
