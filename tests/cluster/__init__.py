"""Tests on a real SLURM cluster of two nodes, each in a network namespace of this machine."""
