"""The pairs of a sparse convolution, found on the host: who meets whom, under what.

Where the voxels fill enough of their box, neighbours are looked up in a table of all
its cells. Else they are found by binary search among the cells' numbers, a column at a
time along the last axis, or among the sorted coordinates where numbers would not fit
into 64 bits: extents have no limit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from e3dsnn_jax.cell_table import (
    CellNumbers,
    is_small,
    make_table,
    number_cells,
    unique_numbers,
)
from e3dsnn_jax.kernel_map import Kernel, Pairs, check_submanifold


def check_coords(coords: Int[np.ndarray, "voxels axes"], what: str) -> None:
    """Raises ValueError unless coordinates are unique and sorted by batch, x, y, z.

    Args:
      coords: Batch index and spatial coordinates, all at least 0.
      what: Name of the coordinates in the message.
    """
    if coords.ndim != 2 or coords.shape[1] < 2:
        raise ValueError(
            f"{what}: coordinates need shape [voxels, 1 + axes], got {coords.shape}"
        )
    if len(coords) and int(coords.min()) < 0:
        row = int(np.argwhere(coords < 0)[0, 0])
        raise ValueError(
            f"{what}: coordinates must be >= 0, row {row} is {coords[row].tolist()}"
        )
    cells = number_cells(coords, (0,) * coords.shape[1]) if len(coords) else None
    if cells is not None and (cells.numbers[1:] > cells.numbers[:-1]).all():
        return
    later, earlier = coords[1:], coords[:-1]
    differs = later != earlier
    first = differs.argmax(1)
    rows = np.arange(len(later))
    good = differs.any(1) & (later[rows, first] > earlier[rows, first])
    if not good.all():
        row = int(np.argmin(good)) + 1
        raise ValueError(
            f"{what}: rows must be unique and sorted by batch, then coordinates; row "
            f"{row} is {coords[row].tolist()} after {coords[row - 1].tolist()} (sort "
            "and merge duplicates first, as voxelize does)"
        )


class _Column(NamedTuple):
    """Consecutive cells along the last axis, searched in one go."""

    shift: tuple[int, ...]
    """Where the run starts, relative to the receiver."""
    run: int
    """Number of consecutive cells."""


class _TrieLevel(NamedTuple):
    """Nodes of one depth: the distinct prefixes of the sorted coordinates."""

    keys: Int[np.ndarray, " nodes"]
    """Ascending: rank of the parent times `span`, plus the node's coordinate."""
    parent: Int[np.ndarray, " nodes"]
    column: Int[np.ndarray, " nodes"]
    span: int


def _make_trie(
    coords: Int[np.ndarray, "voxels axes"], reach: tuple[int, ...]
) -> list[_TrieLevel]:
    """Prefixes (batch), (batch, x), (batch, x, y), ... of sorted coordinates.

    Each depth is searched by a key below (rows * span of one axis), so that extents
    have no limit; `reach` leaves room at both ends of each axis, so that a shifted
    coordinate never runs into the next parent.
    """
    levels = []
    rank = np.zeros(len(coords), np.int64)
    for axis, margin in enumerate(reach):
        column = coords[:, axis].astype(np.int64)
        column -= column.min() - margin
        span = int(column.max()) + margin + 1
        keys = rank * span + column
        starts = np.empty(len(keys), bool)
        starts[0] = True
        np.not_equal(keys[1:], keys[:-1], out=starts[1:])
        size = np.int32 if (int(rank[-1]) + 1) * span < 2**31 - 1 else np.int64
        nodes = np.flatnonzero(starts)
        levels.append(
            _TrieLevel(
                keys[nodes].astype(size),
                rank[nodes].astype(size),
                column[nodes].astype(size),
                span,
            )
        )
        rank = np.cumsum(starts) - 1
    return levels


def _look_up(
    cells: CellNumbers, shifts: list[tuple[int, ...]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(sender, receiver) rows under every shift, receivers ascending, by a table."""
    table = make_table(cells)
    results = []
    for shift in shifts:
        step = sum(s * d for s, d in zip(cells.strides[1:], shift, strict=True))
        found = table[cells.numbers + step]
        receivers = np.flatnonzero(found >= 0)
        results.append((found[receivers], receivers))
    return results


def _search(
    cells: CellNumbers, columns: list[_Column]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(sender, receiver) rows at every cell of each column, receivers ascending."""
    numbers = cells.numbers
    if cells.size < 2**31 - 1:
        numbers = numbers.astype(np.int32)
    padded = np.append(numbers, np.iinfo(numbers.dtype).max)
    every = np.arange(len(numbers))
    results = []
    for shift, run in columns:
        step = sum(s * d for s, d in zip(cells.strides[1:], shift, strict=True))
        queries = numbers + numbers.dtype.type(step)
        # One up from a number, the next row is the first that is not below.
        at = every + 1 if step == 1 else np.searchsorted(numbers, queries)
        for _ in range(run):
            hit = padded[at] == queries
            receivers = np.flatnonzero(hit)
            results.append((at[receivers], receivers))
            at += hit  # numbers are whole and unique: the next one up is one further
            queries += 1
    return results


def _translate(
    coords: Int[np.ndarray, "voxels axes"],
    columns: list[_Column],
    reach: tuple[int, ...],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """As `_search`, on coordinates whose numbers would not fit into 64 bits."""
    trie = _make_trie(coords, reach)
    found: dict[tuple[int, ...], np.ndarray] = {(): np.arange(len(trie[0].keys))}

    def neighbours(prefix: tuple[int, ...]) -> np.ndarray:
        """Rank of the node at a shifted prefix for every node, -1 where none."""
        if prefix not in found:
            keys, parent, column, span = trie[len(prefix)]
            if not any(prefix):
                found[prefix] = np.arange(len(keys), dtype=keys.dtype)
            else:
                above = neighbours(prefix[:-1]).astype(keys.dtype)
                queries = above[parent] * span + (column + prefix[-1])
                at = np.searchsorted(keys, queries)
                at[at == len(keys)] = 0
                found[prefix] = np.where(keys[at] == queries, at, -1)
        return found[prefix]

    keys, parent, column, span = trie[-1]
    padded = np.append(keys, np.iinfo(keys.dtype).max)
    results = []
    for shift, run in columns:
        above = neighbours(shift[:-1]).astype(keys.dtype)[parent]
        receivers = np.flatnonzero(above >= 0)
        queries = above[receivers] * span + (column[receivers] + shift[-1])
        at = np.searchsorted(keys, queries)
        for _ in range(run):
            hit = padded[at] == queries
            results.append((at[hit], receivers[hit]))
            at += hit  # keys are whole and unique: the next one up is one further
            queries += 1
    return results


def submanifold_pairs(
    coords: Int[np.ndarray, "voxels axes"], kernel: Kernel, *, check: bool = True
) -> Pairs:
    """Pairs of a submanifold convolution: outputs sit exactly on the inputs.

    Half of the offsets are searched; the other half mirrors them.

    Args:
      coords: Sorted unique coordinates (batch, then spatial axes).
      kernel: Odd sizes; stride and padding have no meaning here and must be 1 and 0.
      check: Make sure that the coordinates are sorted and unique.

    Returns:
      The pairs, in row-major order of the offsets.

    Raises:
      ValueError: On an even size, a stride or padding, or coordinates that are not
        sorted and unique.

    Source: submanifold sparse convolution, `SubMConv3d` of the published stack.
    """
    check_submanifold(kernel)
    if check:
        check_coords(coords, "submanifold input")
    middle = kernel.num_offsets // 2
    every = np.arange(len(coords))
    centres = [size // 2 for size in kernel.size]
    shifts = [
        tuple(
            (k - centre) * d
            for k, centre, d in zip(offset, centres, kernel.dilation, strict=True)
        )
        for offset in kernel.offsets()[middle + 1 :]
    ]
    reach = (0, *(c * d for c, d in zip(centres, kernel.dilation, strict=True)))
    cells = number_cells(coords, reach) if len(coords) else None
    if not len(coords) or not shifts:
        found = [(every[:0], every[:0]) for _ in shifts]
    elif cells is not None and is_small(cells):
        found = _look_up(cells, shifts)
    else:
        depth = kernel.size[-1] if kernel.dilation[-1] == 1 else 1
        own = depth // 2  # cells above the centre in its own column
        columns = [_Column(shifts[0], own)] if own else []
        columns += [_Column(shift, depth) for shift in shifts[own::depth]]
        if cells is not None:
            found = _search(cells, columns)
        else:
            found = _translate(coords, columns, reach)
    mirrored = [(receivers, senders) for senders, receivers in reversed(found)]
    return _join([*mirrored, (every, every), *found])


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> Pairs:
    senders, receivers = (
        np.concatenate([part[end] for part in parts], dtype=np.int32, casting="unsafe")
        for end in (0, 1)
    )
    counts = np.array([len(rows) for rows, _ in parts], np.int64)
    return Pairs(senders, receivers, counts)


def strided_pairs(
    coords: Int[np.ndarray, "voxels axes"],
    kernel: Kernel,
    *,
    extent: tuple[int, ...] | None = None,
    check: bool = True,
) -> tuple[Int[np.ndarray, "outputs axes"], Pairs]:
    """Outputs and pairs of a strided convolution: every cell that an input reaches.

    Args:
      coords: Sorted unique coordinates (batch, then spatial axes).
      kernel: Geometry of the convolution.
      extent: Cells of the input grid along each spatial axis. It bounds the outputs
        (with size 2, stride 2 and an odd extent the last slab is dropped, as in the
        published stack). None: no upper bound.
      check: Make sure that the coordinates are sorted and unique.

    Returns:
      The sorted unique output coordinates, and the pairs.

    Raises:
      ValueError: On coordinates outside the extent, not sorted, or not unique.

    Source: `SparseConv3d` of the published stack.
    """
    if check:
        check_coords(coords, "strided input")
    coords = coords.astype(np.int64)
    if extent is not None and len(coords):
        highest = tuple(coords[:, 1:].max(0).tolist())
        if any(top >= n for top, n in zip(highest, extent, strict=True)):
            raise ValueError(
                f"coordinates reach {highest} but the extent is {extent}: they must "
                "lie below it"
            )
    bounds = (None,) * (coords.shape[1] - 1)
    if extent is not None:
        bounds = kernel.output_extent(extent)
    if (
        kernel.size == kernel.stride
        and set(kernel.padding) == {0}
        and set(kernel.dilation) == {1}
    ):
        return _partition(coords, kernel, bounds)
    # The cell that each row reaches, one axis and one tap at a time.
    cells, valid = [], []
    for axis, bound in enumerate(bounds):
        taps = np.arange(kernel.size[axis])[:, None] * kernel.dilation[axis]
        reached = coords[:, axis + 1] + kernel.padding[axis] - taps
        cell, rest = np.divmod(reached, kernel.stride[axis])
        cells.append(cell)
        valid.append((rest == 0) & (cell >= 0))
        if bound is not None:
            valid[-1] &= cell < bound
    senders, outputs = [], []
    for offset in kernel.offsets():
        hit = np.logical_and.reduce([v[k] for v, k in zip(valid, offset, strict=True)])
        rows = np.flatnonzero(hit)
        reached = [c[k][rows] for c, k in zip(cells, offset, strict=True)]
        senders.append(rows)
        outputs.append(np.stack([coords[rows, 0], *reached]))
    unique, place = _unique_columns(np.concatenate(outputs, 1))
    # Within an offset the receivers ascend already: the inputs are sorted and all
    # move by the same step.
    ends = np.cumsum([len(rows) for rows in senders])
    parts = zip(senders, np.split(place, ends[:-1]), strict=True)
    return unique.T.astype(np.int32), _join(list(parts))


def _partition(
    coords: Int[np.ndarray, "voxels axes"],
    kernel: Kernel,
    bounds: tuple[int | None, ...],
) -> tuple[Int[np.ndarray, "outputs axes"], Pairs]:
    """`strided_pairs` where kernels tile the grid: one output an input."""
    rows = np.arange(len(coords))
    for axis, bound in enumerate(bounds):
        if bound is not None:
            cut = bound * kernel.stride[axis]
            rows = rows[coords[rows, axis + 1] < cut]
    kept = coords if len(rows) == len(coords) else coords[rows]
    reached, offset = [kept[:, 0]], np.zeros(len(kept), np.int64)
    for axis, stride in enumerate(kernel.stride):
        column = kept[:, axis + 1]
        reached.append(column // stride)  # divmod takes three times as long
        offset = offset * stride + (column - reached[-1] * stride)
    unique, place = _unique_columns(np.stack(reached))
    # Numbers of up to 16 bits are sorted by radix, in a quarter of the time.
    small = offset.astype(np.min_scalar_type(kernel.num_offsets))
    order = np.argsort(small, kind="stable")
    counts = np.bincount(offset, minlength=kernel.num_offsets)
    pairs = Pairs(rows[order].astype(np.int32), place[order].astype(np.int32), counts)
    return unique.T.astype(np.int32), pairs


def _unique_columns(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique columns in lexicographic order, and the place of each among them."""
    if not columns.shape[1]:
        return columns, np.zeros(0, np.int64)
    cells = number_cells(columns.T, (0,) * len(columns))
    if cells is not None:
        first, place = unique_numbers(cells)
        return columns[:, first], place
    unique, place = np.unique(columns, axis=1, return_inverse=True)
    return unique, place.reshape(-1)
