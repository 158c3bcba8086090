"""Cycles of a program, where the compiler's own estimates leave some out.

Gathers and scatters carry no estimate in a program's text. Their inner loops, as the
compiler schedules them, take a fixed number of instruction bundles for a row, and a
core issues one bundle a cycle. Waiting for memory comes on top where rows lie in HBM.
"""

from experiments.tpu.work import Work

# Bundles a row in the compiler's final schedules for v5e (libtpu 0.0.41, its option
# `xla_jf_dump_to`), each 128 channels a row of their own: in the core's memory 1.8 of
# float32 and 2.3 of bfloat16 or int8, in HBM 5.2 and 8.2 for 128 and 192 channels. A
# scatter of single numbers takes 11.7.
GATHER_CYCLES = 2.0
HBM_GATHER_CYCLES = 5.0
SCATTER_CYCLES = 11.7


def scheduled_cycles(work: Work) -> int:
    """The compiler's estimates, and what gathers and scatters add to them."""
    near = work.gathered_tile_rows - work.gathered_from_hbm
    gathers = GATHER_CYCLES * near + HBM_GATHER_CYCLES * work.gathered_from_hbm
    return round(work.cycles + gathers + SCATTER_CYCLES * work.scattered_rows)
