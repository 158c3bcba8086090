"""What `kernel_map` times: maps by this project, by plain searches and by spconv.

All contenders for one map are run once beforehand, and must find as many pairs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.capacity import MapCapacity
from e3dsnn_jax.kernel_map import (
    Kernel,
    KernelMap,
    Pairs,
    block_size,
    blocks_needed,
    pack_pairs,
)
from e3dsnn_jax.kernel_map_device import (
    build_pyramid_on_device,
    build_strided_map,
    build_submanifold_map,
)
from e3dsnn_jax.kernel_pairs import strided_pairs, submanifold_pairs
from e3dsnn_jax.pyramid import DOWN, SUBMANIFOLD, find_levels, fit_capacity, pack_levels
from experiments.benchmarks.timing import Cases

NUM_LEVELS = VARIANTS["T"].num_levels


def naive_pairs(coords: Int[np.ndarray, "voxels 4"]) -> Pairs:
    """The pairs of a 3x3x3 submanifold convolution by 27 binary searches."""
    # One empty cell between the rows of the box: no step runs into the next one.
    spans = coords.max(0).astype(np.int64) + 2
    strides = np.append(np.cumprod(spans[:0:-1])[::-1], 1)
    keys = coords @ strides
    senders, receivers = [], []
    for offset in SUBMANIFOLD.offsets():
        wanted = keys + (np.array(offset) - 1) @ strides[1:]
        place = np.searchsorted(keys, wanted)
        hit = keys[np.minimum(place, len(keys) - 1)] == wanted
        senders.append(place[hit])
        receivers.append(np.flatnonzero(hit))
    counts = np.array([len(rows) for rows in senders], np.int64)
    return Pairs(np.concatenate(senders), np.concatenate(receivers), counts)


class Scan:
    """The voxels of one scan, and both of the maps that are built of them.

    Args:
      coords: Sorted unique voxels.
    """

    def __init__(self, coords: Int[np.ndarray, "voxels 4"]):
        self.coords = coords
        same = submanifold_pairs(coords, SUBMANIFOLD)
        coarse, down = strided_pairs(coords, DOWN)
        self._num_out = {"submanifold": len(coords), "strided": len(coarse)}
        self._shape = {"submanifold": fit_map(same), "strided": fit_map(down)}
        self._device_coords = jnp.asarray(coords)
        self._build = {
            "submanifold": jax.jit(
                functools.partial(
                    build_submanifold_map,
                    kernel=SUBMANIFOLD,
                    capacity=self._shape["submanifold"],
                )
            ),
            "strided": jax.jit(
                functools.partial(
                    build_strided_map,
                    kernel=DOWN,
                    capacity=self._shape["strided"],
                    num_out=len(coarse),
                )
            ),
        }

    def find(self, kind: str) -> Pairs:
        """The pairs of the submanifold or the strided map, on the host."""
        if kind == "submanifold":
            return submanifold_pairs(self.coords, SUBMANIFOLD)
        return strided_pairs(self.coords, DOWN)[1]

    def pack(self, kind: str) -> KernelMap:
        """The same in blocks."""
        return pack_pairs(
            self.find(kind),
            num_in=len(self.coords),
            num_out=self._num_out[kind],
            pairs_per_block=self._shape[kind].pairs,
            blocks_capacity=self._shape[kind].blocks,
        )

    def build(self, kind: str) -> KernelMap:
        """The same as `pack`, on the device and waited for."""
        built = jax.block_until_ready(self._build[kind](self._device_coords))
        return built if kind == "submanifold" else built[-1]

    def count(self, kernel_map: KernelMap) -> int:
        """The number of pairs of a map in blocks."""
        return int((np.asarray(kernel_map.senders) < len(self.coords)).sum())


def fit_map(pairs: Pairs) -> MapCapacity:
    """The smallest shape of a map for pairs, in blocks of the usual size."""
    size = block_size(len(pairs.senders), len(pairs.counts))
    return MapCapacity(blocks_needed(pairs, pairs_per_block=size), size)


def spconv_pairs(coords: Int[np.ndarray, "voxels 4"], kernel: Kernel) -> int:
    """Finds the pairs of a map with spconv, in the form that its layers take.

    Returns:
      Their number.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from spconv.core import ConvAlgo  # pyright: ignore[reportMissingImports]
    from spconv.pytorch import ops  # pyright: ignore[reportMissingImports]

    submanifold = kernel == SUBMANIFOLD
    # Even, so that no slab is dropped by the strided convolution.
    extent = [2 * (int(cells) // 2 + 1) for cells in coords[:, 1:].max(0)]
    _, _, counts = ops.get_indice_pairs(
        torch.from_numpy(coords),
        1,
        extent,
        ConvAlgo.Native,
        list(kernel.size),
        list(kernel.stride),
        [1 if submanifold else 0] * 3,
        list(kernel.dilation),
        [0] * 3,
        subm=submanifold,
    )
    # A voxel's pair with itself is not listed.
    return len(coords) + 2 * int(counts.sum()) if submanifold else int(counts.sum())


def check_agreement(what: str, counts: dict[str, Any]) -> None:
    """Raises ValueError unless all contenders have counted what ours has."""
    if any(count != counts["ours"] for count in counts.values()):
        raise ValueError(f"{what}: the contenders count differently: {counts}")


def scan_cases(kind: str, scan: Scan, *, peer: bool) -> tuple[Cases, int]:
    """What is timed of one map of a scan, and the number of its pairs.

    Args:
      kind: "submanifold" or "strided".
      scan: The scan.
      peer: Time spconv too.

    Raises:
      ValueError: If not all contenders find as many pairs.
    """
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: scan.find(kind),
        "ours_packed": lambda: scan.pack(kind),
        "ours_device": lambda: scan.build(kind),
    }
    counts: dict[str, Any] = {"ours": len(scan.find(kind).senders)}
    for whose in ("ours_packed", "ours_device"):
        counts[whose] = scan.count(runs[whose]())
    if kind == "submanifold":
        runs["naive"] = lambda: naive_pairs(scan.coords)
        counts["naive"] = len(naive_pairs(scan.coords).senders)
    if peer:
        kernel = SUBMANIFOLD if kind == "submanifold" else DOWN
        from experiments.benchmarks.spconv_peer import on_threads

        for whose, timed in on_threads(
            lambda: spconv_pairs(scan.coords, kernel)
        ).items():
            runs[whose] = timed
            counts[whose] = timed()
    name = f"{kind}, {len(scan.coords)} voxels"
    check_agreement(name, counts)
    return {(name, whose): run for whose, run in runs.items()}, counts["ours"]


def batch_cases(
    coords: Int[np.ndarray, "voxels 4"], *, slack: float, peer: bool
) -> tuple[Cases, list[int]]:
    """What is timed of all levels of a batch, and the voxels of each level.

    Args:
      coords: Sorted unique voxels of the batch.
      slack: Static shapes over what the batch needs.
      peer: Time spconv too.

    Raises:
      ValueError: If not all contenders find as many voxels.
    """
    find = functools.partial(find_levels, coords, num_levels=NUM_LEVELS)
    found = find()
    capacity = fit_capacity([found], slack=slack)
    packed = pack_levels(found, capacity)
    padded = jnp.asarray(packed[0].coords)
    build = jax.jit(functools.partial(build_pyramid_on_device, capacity=capacity))
    runs: Cases = {
        ("levels", "ours"): lambda: pack_levels(find(), capacity),
        ("levels", "ours_device"): lambda: jax.block_until_ready(build(padded)),
        ("levels, find only", "ours"): find,
        ("levels, pack only", "ours"): lambda: pack_levels(found, capacity),
    }
    rows = [len(level.coords) for level in found]
    counts: dict[str, Any] = {
        "ours": rows,
        "ours_device": [int(level.voxels_needed) for level in build(padded)],
    }
    if peer:
        from experiments.benchmarks.spconv_peer import Classifier, Trainer, on_threads

        trainer = Trainer(Classifier())
        clouds = int(coords[-1, 0]) + 1
        theirs = functools.partial(trainer.index_pairs, coords, num_clouds=clouds)
        for whose, timed in on_threads(theirs).items():
            runs["levels", whose] = timed
            counts[whose] = timed()
    check_agreement("voxels of the levels", counts)
    return runs, rows
