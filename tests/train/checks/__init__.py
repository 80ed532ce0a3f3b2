"""Tests of train/checks."""
