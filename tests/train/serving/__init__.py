"""Tests of train/serving."""
