"""What can be found wrong before a GPU is held; imports no torch."""
