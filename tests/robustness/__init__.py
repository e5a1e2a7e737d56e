"""A campaign against all that can go wrong: broken inputs, kills, full disks, other processes.

`python -m tests.robustness` (or `make campaign`) runs it and prints its counts; `make test` runs a
small sample of it. Everything is drawn from a seed.
"""
