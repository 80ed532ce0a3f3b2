"""Tests of train/memory."""
