"""What the scripts of slurm/ do, for the cluster's own python3: version 3.6 or later, standard library alone."""
