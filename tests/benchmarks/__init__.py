"""Programs that print figures, and the quickstart; started by hand, and tiny by the test suite."""
