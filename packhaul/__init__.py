"""The command `packhaul`: one name for all entries of data_prep and train.

An entry is imported only when it is asked for.
"""
