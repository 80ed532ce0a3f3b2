"""Tests of the scripts in slurm/, without SLURM."""
