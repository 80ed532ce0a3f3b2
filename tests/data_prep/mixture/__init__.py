"""Tests of data_prep/mixture."""
