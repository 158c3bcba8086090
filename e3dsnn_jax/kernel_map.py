"""Which input voxel meets which output voxel under which kernel offset (NumPy).

Cross-correlation as in the published stack: the input at
`output * stride - padding + offset * dilation` meets `output` under `offset`.
Pairs are sorted by (offset, receiver) and cut into blocks of one offset each, so
that a block is one matrix product. Everything here runs on the host, ahead of the
step; `kernel_map_device` builds the same arrays under `jit`.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int, Int32

HostOrDevice = np.ndarray | Array


class Kernel(NamedTuple):
    """Geometry of a convolution, one entry a spatial axis (2-D or 3-D alike)."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def num_offsets(self) -> int:
        """Number of kernel offsets, row-major over the axes."""
        return math.prod(self.size)

    def offsets(self) -> list[tuple[int, ...]]:
        """All offsets in row-major order, last axis fastest."""
        return list(itertools.product(*(range(size) for size in self.size)))

    def output_extent(self, extent: tuple[int, ...]) -> tuple[int, ...]:
        """Output cells along each axis: `(n + 2p - d(k - 1) - 1) // s + 1`."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(extent, *self, strict=True)
        )


def make_kernel(
    size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    dims: int = 3,
) -> Kernel:
    """A kernel geometry from numbers or tuples; a number stands for every axis.

    Raises:
      ValueError: If a tuple has another length than `dims` or a value is too small.
    """

    def spread(name: str, value: int | tuple[int, ...], least: int) -> tuple[int, ...]:
        values = (value,) * dims if isinstance(value, int) else tuple(value)
        if len(values) != dims or min(values) < least:
            raise ValueError(
                f"kernel {name} needs {dims} whole numbers >= {least}, got {value}"
            )
        return values

    return Kernel(
        spread("size", size, 1),
        spread("stride", stride, 1),
        spread("padding", padding, 0),
        spread("dilation", dilation, 1),
    )


class Pairs(NamedTuple):
    """Every (sender, receiver) of a convolution, sorted by (offset, receiver)."""

    senders: Int[np.ndarray, " pairs"]
    receivers: Int[np.ndarray, " pairs"]
    counts: Int[np.ndarray, " offsets"]
    """Number of pairs under each kernel offset."""


class KernelMap(NamedTuple):
    """Pairs in blocks of one kernel offset each, padded to static shapes.

    Rows one past the end mean "no pair". `sparse_conv` runs along the map; the
    inverse (transposed) convolution is the same map with `invert`.
    """

    senders: Int32[HostOrDevice, "blocks pairs"]
    receivers: Int32[HostOrDevice, "blocks pairs"]
    offset: Int32[HostOrDevice, " blocks"]
    """Kernel offset that all pairs of a block share; 0 in unused blocks."""
    blocks_needed: Int32[HostOrDevice, ""]
    """Blocks that the pairs take; larger than the capacity means overflow."""

    @property
    def capacity(self) -> int:
        """Number of blocks that the arrays hold."""
        return self.senders.shape[-2]


def invert(kernel_map: KernelMap) -> KernelMap:
    """The map of the inverse convolution: from the outputs back to the inputs."""
    return kernel_map._replace(
        senders=kernel_map.receivers, receivers=kernel_map.senders
    )


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
    if len(coords) and coords.min() < 0:
        row = int(np.argwhere(coords < 0)[0, 0])
        raise ValueError(
            f"{what}: coordinates must be >= 0, row {row} is {coords[row].tolist()}"
        )
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
    coords: Int[np.ndarray, "voxels axes"], reach: list[int]
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


def _translate(
    coords: Int[np.ndarray, "voxels axes"], columns: list[_Column]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(sender, receiver) rows at every cell of each column, receivers ascending."""
    reach = [0] * coords.shape[1]
    for shift, run in columns:
        ends = (*shift[:-1], max(abs(shift[-1]), abs(shift[-1] + run - 1)))
        for axis, step in enumerate(ends):
            reach[axis + 1] = max(reach[axis + 1], abs(step))
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


def check_submanifold(kernel: Kernel) -> None:
    """Rejects a kernel that a submanifold convolution cannot have.

    Raises:
      ValueError: On an even size, a stride or padding.
    """
    if any(size % 2 == 0 for size in kernel.size):
        raise ValueError(f"a submanifold kernel needs odd sizes, got {kernel.size}")
    if set(kernel.stride) != {1} or set(kernel.padding) != {0}:
        raise ValueError(
            "a submanifold kernel has stride 1 and padding 0, got "
            f"stride={kernel.stride} padding={kernel.padding}"
        )


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
    depth = kernel.size[-1] if kernel.dilation[-1] == 1 else 1
    own = depth // 2  # cells above the centre in its own column
    columns = [_Column(shifts[0], own)] if own else []
    columns += [_Column(shift, depth) for shift in shifts[own::depth]]
    if len(coords) and columns:
        found = _translate(coords, columns)
    else:
        found = [(every[:0], every[:0]) for _ in shifts]
    mirrored = [(receivers, senders) for senders, receivers in reversed(found)]
    return _join([*mirrored, (every, every), *found])


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> Pairs:
    return Pairs(
        np.concatenate([senders for senders, _ in parts]).astype(np.int32),
        np.concatenate([receivers for _, receivers in parts]).astype(np.int32),
        np.array([len(senders) for senders, _ in parts], np.int64),
    )


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
        cell, tap = np.divmod(kept[:, axis + 1], stride)
        reached.append(cell)
        offset = offset * stride + tap
    unique, place = _unique_columns(np.stack(reached))
    order = np.argsort(offset, kind="stable")
    counts = np.bincount(offset, minlength=kernel.num_offsets)
    pairs = Pairs(rows[order].astype(np.int32), place[order].astype(np.int32), counts)
    return unique.T.astype(np.int32), pairs


def _unique_columns(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique columns in lexicographic order, and the place of each among them."""
    if not columns.shape[1]:
        return columns, np.zeros(0, np.int64)
    spans = [int(top) + 1 for top in columns.max(1)]
    if math.prod(spans) < 2**62:  # whole Python numbers: no wrap-round
        key = columns[0]
        for row, span in zip(columns[1:], spans[1:], strict=True):
            key = key * span + row
        _, first, place = np.unique(key, return_index=True, return_inverse=True)
        return columns[:, first], place
    unique, place = np.unique(columns, axis=1, return_inverse=True)
    return unique, place.reshape(-1)


def blocks_needed(pairs: Pairs, *, pairs_per_block: int) -> int:
    """Blocks that the pairs take: one offset a block, the last one partly filled."""
    return int(np.sum(-(-pairs.counts // pairs_per_block)))


def block_size(num_pairs: int, num_offsets: int) -> int:
    """Pairs per block that suits a map: the power of two below the mean per offset.

    Measured on CPU over the levels of the classifier (16 to 12,000 pairs an offset):
    larger blocks multiply padding, smaller ones pay the loop once more; beyond 2048
    the messages of a block leave the cache.
    """
    mean = num_pairs / max(num_offsets, 1)
    return int(min(max(2 ** int(math.log2(max(mean, 1))), 16), 2048))


def pack_pairs(
    pairs: Pairs,
    *,
    num_in: int,
    num_out: int,
    pairs_per_block: int,
    blocks_capacity: int,
) -> KernelMap:
    """Cuts pairs into blocks of one offset each and pads them to a static shape.

    If the capacity is too small the map is cut and `blocks_needed` says by how much;
    `sparse_conv` answers such a map with NaN, and the training loop stops.

    Args:
      pairs: All pairs of the convolution.
      num_in: Row capacity of the inputs; also the "no pair" row of senders.
      num_out: Row capacity of the outputs; also the "no pair" row of receivers.
      pairs_per_block: Columns of the map.
      blocks_capacity: Rows of the map.
    """
    per_offset = -(-pairs.counts // pairs_per_block)
    needed = int(per_offset.sum())
    first_pair = np.cumsum(pairs.counts) - pairs.counts
    first_slot = (np.cumsum(per_offset) - per_offset) * pairs_per_block
    slots = np.arange(len(pairs.senders)) + np.repeat(
        first_slot - first_pair, pairs.counts
    )
    size = max(needed, blocks_capacity) * pairs_per_block
    senders = np.full(size, num_in, np.int32)
    receivers = np.full(size, num_out, np.int32)
    senders[slots] = pairs.senders
    receivers[slots] = pairs.receivers
    offset = np.zeros(max(needed, blocks_capacity), np.int32)
    offset[:needed] = np.repeat(np.arange(len(pairs.counts)), per_offset)
    kept = blocks_capacity * pairs_per_block
    return KernelMap(
        senders[:kept].reshape(blocks_capacity, pairs_per_block),
        receivers[:kept].reshape(blocks_capacity, pairs_per_block),
        offset[:blocks_capacity],
        np.asarray(needed, np.int32),
    )
