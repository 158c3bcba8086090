"""One file per table or figure of a paper: `python -m experiments.NAME` runs it."""
