"""Which documents a step trained, and when a document was trained, from the shards and the run's record alone."""
