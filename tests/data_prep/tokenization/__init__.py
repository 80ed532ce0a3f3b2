"""Tests of data_prep/tokenization."""
