"""The SLURM templates; `slurm.jobs` is the program behind them."""
