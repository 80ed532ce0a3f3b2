"""Checkpoints: saving, publishing, resume, another world size. Imports no torch by itself."""
