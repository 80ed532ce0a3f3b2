"""Tests: what mirrors the code, then what starts processes, a cluster or a GPU."""
