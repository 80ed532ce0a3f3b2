"""Tests of train/config."""
