"""Tests of data_prep, in its folders."""
