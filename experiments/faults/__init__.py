"""What happens to runs, files and clouds when things go wrong, counted.

`python -m experiments.faults` runs all of it.
"""
