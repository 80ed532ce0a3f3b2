"""Tests of data_prep/report."""
