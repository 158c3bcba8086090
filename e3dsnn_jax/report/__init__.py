"""The report of a training run: one page of HTML that needs no network.

`contents.py`, `analysis_file.py` and `energy_file.py` read what a run folder holds;
`training_part.py`, `learning_part.py`, `spiking_part.py` and `clouds_part.py` make
sections of it, with figures from `plots.py`; `page.py` joins them; `command.py` is
`e3dsnn report`.
"""
