"""Tests of train/loop."""
