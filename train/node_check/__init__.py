"""What is looked at on the nodes of a job before its training: GPUs, folders, limits, network, versions."""
