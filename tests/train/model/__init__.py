"""Tests of train/model."""
