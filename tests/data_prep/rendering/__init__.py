"""Tests of data_prep/rendering."""
