"""Which input voxel meets which output voxel under which kernel offset.

Cross-correlation as in the published stack: the input at
`output * stride - padding + offset * dilation` meets `output` under `offset`.
Pairs are sorted by (offset, receiver) and cut into blocks of one offset each, so
that a block is one matrix product. `kernel_pairs` finds them on the host, ahead of the
step; `kernel_map_device` builds the same arrays under `jit`.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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


class Runs(NamedTuple):
    """Partners of every row, a run of offsets along the kernel's last axis at a time.

    `first` is `place * (partners + 1) + row`: a row's first partner in a run, and the
    place in the run of the offset that they meet under; or `partners`, the row of zeros
    past the end, without any. `kernel_runs` finds all this on the host.
    """

    forward: Int32[HostOrDevice, "steps rows_out"]
    """First sender of every receiver."""
    backward: Int32[HostOrDevice, "steps rows_in"] | None
    """First receiver of every sender, with places counted from the end of the run.
    None: the map is its own mirror image, and this is `forward`, last step first."""
    follow_senders: Int32[HostOrDevice, " rows_in+1"]
    """Which rows stand in the later places of a run that begins with a sender: two bits
    for each of `later_places`, how many rows further, 0 for none."""
    follow_receivers: Int32[HostOrDevice, " rows_out+1"] | None
    """The same of receivers. None: as of senders."""


def later_places(run: int) -> list[tuple[int, int]]:
    """Pairs (first place, later place) of a run of offsets, in the order of `Runs`."""
    return list(itertools.combinations(range(run), 2))


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
    rows: Int32[HostOrDevice, "2"]
    """Row capacities of inputs and outputs that the map was made for."""
    runs: Runs | None = None
    """What a TPU reads instead of the pairs, if given (`add_runs`). Other platforms do
    not read it and should do without: it is more to make and to move."""

    @property
    def capacity(self) -> int:
        """Number of blocks that the arrays hold."""
        return self.senders.shape[-2]


def invert(kernel_map: KernelMap) -> KernelMap:
    """The map of the inverse convolution: from the outputs back to the inputs."""
    return kernel_map._replace(
        senders=kernel_map.receivers,
        receivers=kernel_map.senders,
        rows=kernel_map.rows[..., ::-1],
        # Their offsets would run the other way; the pairs alone serve as well.
        runs=None,
    )


def match_rows(kernel_map: KernelMap, *, num_in: int, num_out: int) -> KernelMap:
    """The map on the device, if it was made for so many rows.

    With other rows "no pair" would name a real row, or rows would be missing. Under
    `jit`, where the map's numbers are not known, such a map comes back as one that
    overflows, whose results are NaN.

    Raises:
      ValueError: If the numbers are known and differ.
    """
    # Host arrays are welcome too; loops over a map index them by traced numbers.
    kernel_map = jax.tree.map(jnp.asarray, kernel_map)
    if not isinstance(kernel_map.rows, Tracer):
        made_for = tuple(kernel_map.rows.tolist())
        if made_for != (num_in, num_out):
            raise ValueError(
                f"the map joins {made_for[0]} input rows with {made_for[1]} output "
                f"rows, but the inputs have {num_in} rows and num_out is {num_out}: "
                "give both the rows of their levels (`pad_features`)"
            )
        return kernel_map
    fits = (kernel_map.rows[0] == num_in) & (kernel_map.rows[1] == num_out)
    needed = jnp.where(fits, kernel_map.blocks_needed, kernel_map.capacity + 1)
    return kernel_map._replace(blocks_needed=needed)


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

    Raises:
      ValueError: If there is no room for a single pair.
    """
    if blocks_capacity < 1 or pairs_per_block < 1:
        raise ValueError(
            "a map needs room for at least one block of one pair, got "
            f"{blocks_capacity=} {pairs_per_block=}"
        )
    per_offset = -(-pairs.counts // pairs_per_block)
    needed = int(per_offset.sum())
    size = max(needed, blocks_capacity) * pairs_per_block
    senders = np.full(size, num_in, np.int32)
    receivers = np.full(size, num_out, np.int32)
    pair = slot = 0
    # A copy an offset: its pairs stay together.
    for count, blocks in zip(pairs.counts.tolist(), per_offset.tolist(), strict=True):
        senders[slot : slot + count] = pairs.senders[pair : pair + count]
        receivers[slot : slot + count] = pairs.receivers[pair : pair + count]
        pair += count
        slot += blocks * pairs_per_block
    offset = np.zeros(max(needed, blocks_capacity), np.int32)
    offset[:needed] = np.repeat(np.arange(len(pairs.counts)), per_offset)
    kept = blocks_capacity * pairs_per_block
    return KernelMap(
        senders[:kept].reshape(blocks_capacity, pairs_per_block),
        receivers[:kept].reshape(blocks_capacity, pairs_per_block),
        offset[:blocks_capacity],
        np.asarray(needed, np.int32),
        np.array([num_in, num_out], np.int32),
    )
