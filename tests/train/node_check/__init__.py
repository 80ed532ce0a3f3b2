"""Looking at the nodes of a job."""
