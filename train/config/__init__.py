"""Run configuration: the YAML file and flags, the libraries' options, what is refused, step arithmetic."""
