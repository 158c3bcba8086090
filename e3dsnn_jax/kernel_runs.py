"""Where the partners of a row lie, one number for a run of kernel offsets.

Rows are sorted by their cells, so the partners of a row under the offsets that differ
along the kernel's last axis alone are rows that follow each other. The first of them
then says where all are: a TPU, which gathers a wide row as fast as a narrow one, takes
three partners at once, and needs no table made of pairs, which costs it a slow scatter.
"""

import numpy as np
from jaxtyping import Int32

from e3dsnn_jax.kernel_map import KernelMap, Runs, later_places
from e3dsnn_jax.pyramid import DOWN, SUBMANIFOLD, Level


def run_length(num_offsets: int) -> int:
    """Offsets in a run: 3 of 27 or 9, 2 of 8, else 1."""
    return next((run for run in (3, 2) if num_offsets % run == 0), 1)


def add_runs(
    kernel_map: KernelMap, *, num_offsets: int, submanifold: bool
) -> KernelMap:
    """A map on the host with its `runs`.

    Args:
      kernel_map: Map without a leading axis, between rows sorted by their cells.
      num_offsets: Offsets of the kernel.
      submanifold: Senders and receivers are the same rows, and every pair has its
        mirror image.

    Raises:
      ValueError: If the partners under a run of offsets do not follow each other, as
        those of a dilated kernel: convolve along the map as it is.
    """
    run = run_length(num_offsets)
    num_in, num_out = kernel_map.rows.tolist()
    # Of a truncated map nothing is computed, and what is left of it fits no run.
    needed = int(kernel_map.blocks_needed)
    used = needed if needed <= kernel_map.capacity else 0
    senders = np.asarray(kernel_map.senders)[:used]
    receivers = np.asarray(kernel_map.receivers)[:used]
    offset = np.asarray(kernel_map.offset)[:used, None]
    # A row has one partner under an offset, so that no two meet in a place; what is no
    # pair falls into a row that is dropped.
    table = np.full((num_offsets, num_out + 1), -1, np.int32)
    table.reshape(-1)[offset * (num_out + 1) + receivers] = senders
    forward, follow_senders = _first_and_following(table, run, num_in)
    if submanifold:
        return kernel_map._replace(runs=Runs(forward, None, follow_senders, None))
    # The cell of a receiver falls as the offset rises.
    offset = offset + run - 1 - 2 * (offset % run)
    table = np.full((num_offsets, num_in + 1), -1, np.int32)
    table.reshape(-1)[offset * (num_in + 1) + senders] = receivers
    backward, follow_receivers = _first_and_following(table, run, num_out)
    runs = Runs(forward, backward, follow_senders, follow_receivers)
    return kernel_map._replace(runs=runs)


def _first_and_following(
    table: Int32[np.ndarray, "offsets table_rows"], run: int, partners: int
) -> tuple[Int32[np.ndarray, "steps rows"], Int32[np.ndarray, " {partners}+1"]]:
    """First partner with its place, and what follows each partner, as in `Runs`."""
    rows = table.shape[1] - 1
    steps = table.reshape(-1, run, rows + 1)[:, :, :rows]
    first_of, follow_of, asked_of = _by_pattern(run)
    has = steps >= 0
    patterns = np.zeros((len(steps), rows), np.uint8)
    first = np.full((len(steps), rows), partners, np.int32)
    for place in reversed(range(run)):
        first = np.where(has[:, place], steps[:, place], first)
        patterns |= has[:, place].astype(np.uint8) << np.uint8(place)
    follow = np.zeros(partners + 1, np.int32)
    expected = first.copy()
    in_order = True
    for place in range(run):
        in_order &= bool(((steps[:, place] == expected) | ~has[:, place]).all())
        expected += has[:, place]
    for begin in range(run - 1):
        # A row is the first of a run in several places, but once in each.
        chosen = (patterns & (2 << begin) - 1) == 1 << begin
        known = np.zeros_like(follow)
        known[first[chosen]] = follow_of[patterns[chosen]]
        follow |= known
    # What follows a partner must be the same for all rows that it is the first of.
    in_order &= np.array_equal(follow[first] & asked_of[patterns], follow_of[patterns])
    if not in_order:
        raise ValueError(
            "partners under a run of offsets are not rows that follow each other: a "
            "dilated kernel has no runs, nor one of size 1 along its last axis; "
            "convolve along the map as it is"
        )
    return first_of[patterns] * np.int32(partners + 1) + first, follow


def _by_pattern(run: int) -> Int32[np.ndarray, "3 patterns"]:
    """For each set of filled places, as bits: the first, what follows, and its mask."""
    first, follow, asked = np.zeros((3, 2**run), np.int32)
    for pattern in range(1, 2**run):
        filled = [place for place in range(run) if pattern >> place & 1]
        first[pattern] = filled[0]
        for number, (begin, later) in enumerate(later_places(run)):
            if begin == filled[0]:
                asked[pattern] |= 3 << 2 * number
                if later in filled:
                    follow[pattern] |= filled.index(later) << 2 * number
    return np.stack([first, follow, asked])


def add_runs_to_levels(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Levels on the host whose maps have their runs, for a network on a TPU.

    The kernels are those of the classifier, 3x3x3 and 2x2x2 with stride 2. Takes the
    host longer than finding the pairs did, and half as many bytes again to move.

    Raises:
      ValueError: As `add_runs`.
    """

    def add(level: Level) -> Level:
        down = level.down
        if down is not None:
            down = add_runs(down, num_offsets=DOWN.num_offsets, submanifold=False)
        same = add_runs(
            level.submanifold, num_offsets=SUBMANIFOLD.num_offsets, submanifold=True
        )
        return level._replace(submanifold=same, down=down)

    return tuple(add(level) for level in levels)
