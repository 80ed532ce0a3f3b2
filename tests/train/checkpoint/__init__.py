"""Tests of train/checkpoint."""
