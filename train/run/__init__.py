"""What every process of a run needs: the world, files that survive a kill, run.json, signals, the watchdog."""
