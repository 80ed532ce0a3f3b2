"""Checks and figures that need a GPU, and the kit that carries them to one."""
