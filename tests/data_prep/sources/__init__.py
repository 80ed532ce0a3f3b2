"""Tests of data_prep/sources."""
