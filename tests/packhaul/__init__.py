"""Tests of the command packhaul."""
