"""Tests of data_prep/stages."""
