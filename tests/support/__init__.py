"""Helpers of the tests: runs in process, in forked worlds and by launchers, stand-ins, reference loops."""
