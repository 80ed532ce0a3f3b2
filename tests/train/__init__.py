"""Tests of train, in its folders."""
