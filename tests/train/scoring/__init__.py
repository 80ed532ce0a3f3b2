"""train.scoring and train.score."""
