"""The stages (tokenize, plan, pack, finish), the job that they belong to, its parts, and the pool of workers."""
