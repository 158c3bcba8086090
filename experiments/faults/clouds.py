"""Extreme clouds through voxels, levels and the smallest published network.

Each must be refused with a message that names it, or give finite numbers, and the same
ones wherever the cloud stands: moved by many cells, every map is searched anew.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.capacity import Capacity
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.pyramid import find_levels, fit_capacity, fits, pack_levels
from e3dsnn_jax.voxels import VoxelCloud, join_clouds, pad_features, voxelize
from experiments.faults.outcomes import (
    SAME,
    WRONG,
    Campaign,
    judge_error,
)

VOXEL_SIZE = 0.05
# A multiple of the coarsest voxel's edge in cells.
_SHIFT = 16 * 1001
_NAME = "the extreme cloud"

Points = Float[np.ndarray, "points 3"]


def dense_block(edge: int) -> Points:
    """One point in the middle of every cell of a cube."""
    cells = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1)
    return ((cells.reshape(-1, 3) + 0.5) * VOXEL_SIZE).astype(np.float32)


def many_voxels(count: int) -> Points:
    """At least so many voxels on a wavy sheet, as a long scan has them."""
    edge = int(np.ceil(np.sqrt(count)))
    x, y = np.meshgrid(np.arange(edge), np.arange(edge), indexing="ij")
    z = 40 * np.sin(x / 50) * np.cos(y / 70)
    sheet = np.stack([x, y, z], axis=-1).reshape(-1, 3) + 0.5
    return (sheet * VOXEL_SIZE).astype(np.float32)


def _with_value(value: float) -> Points:
    points = dense_block(3)
    points[5, 1] = value
    return points


_FAR = np.float32(1e6 * VOXEL_SIZE)
_POINT = np.full((1, 3), 0.3, np.float32)
_BIG = np.finfo(np.float32).max

# Clouds, and whether they must be refused; None leaves that open.
EXTREME: dict[str, tuple[Callable[[], Points], bool | None]] = {
    "one point": (lambda: _POINT, False),
    "all points equal": (lambda: np.repeat(_POINT, 1000, axis=0), False),
    "two voxels": (lambda: np.array([[0, 0, 0], [VOXEL_SIZE] * 3], np.float32), False),
    "negative coordinates": (lambda: dense_block(4) - 100, False),
    "a million voxels apart": (lambda: np.diag([_FAR] * 3).astype("f4"), False),
    "a line of voxels": (lambda: dense_block(24)[:24], False),
    "denormal coordinates": (lambda: dense_block(3) * np.float32(1e-42), False),
    "nan": (lambda: _with_value(np.nan), True),
    "infinity": (lambda: _with_value(np.inf), True),
    "1e9 voxels apart": (lambda: _with_value(1e9 * VOXEL_SIZE), None),
    "coordinates of 1e30": (lambda: _with_value(1e30), None),
    "the largest float": (lambda: np.diag([_BIG, -_BIG, _BIG]).astype("f4"), None),
    "no point": (lambda: np.zeros((0, 3), np.float32), True),
}
"""The clouds by name."""

_VOXEL_SIZES = {
    "vanishing": (1e-310, True),
    "zero": (0.0, True),
    "nan": (np.nan, True),
    "infinite": (np.inf, None),
}


class _Network:
    """The network with random weights; its programs serve clouds up to a size."""

    def __init__(self, largest: Points, architecture: Architecture):
        self.model = Classifier(architecture, num_classes=40)
        self.capacity: Capacity | None = None
        levels = self._levels(voxelize(largest, largest, voxel_size=VOXEL_SIZE))
        self.capacity = fit_capacity([levels])
        features = np.zeros((self.capacity[0].voxels, 6), np.float32)
        packed = pack_levels(levels, self.capacity)
        init = functools.partial(self.model.init, num_clouds=1, train=False)
        variables = jax.jit(init)(jax.random.key(0), features, packed)
        # Initial kernels are so small that no neuron would fire.
        self.variables = jax.tree.map(lambda leaf: 20 * leaf, variables)

        @jax.jit
        def run(variables: Any, features: Any, levels: Any) -> Any:
            logits, activations = self.model.apply(
                variables, features, levels, num_clouds=1, train=False
            )
            finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(activations)]
            return logits, jnp.stack(finite).all()

        self._run = run

    def _levels(self, voxels: VoxelCloud) -> Any:
        coords, _ = join_clouds([voxels])
        return find_levels(coords, num_levels=self.model.architecture.num_levels)

    def logits(
        self, voxels: VoxelCloud, *, shift: int = 0
    ) -> Float[np.ndarray, "1 classes"] | None:
        """The logits of one cloud; None if it is larger than the largest one.

        Args:
          voxels: The cloud.
          shift: Cells by which it is moved: a multiple of the coarsest voxel's edge
            moves the voxels of every level and changes no neighbour.

        Raises:
          FloatingPointError: If some activation is not finite.
        """
        levels = self._levels(voxels._replace(coords=voxels.coords + np.int32(shift)))
        assert self.capacity is not None
        if not fits(levels, self.capacity):
            pack_levels(levels, fit_capacity([levels]))
            return None
        features = pad_features(voxels.features, rows=self.capacity[0].voxels)
        packed = pack_levels(levels, self.capacity)
        logits, finite = self._run(self.variables, features, packed)
        if not finite or not np.isfinite(logits).all():
            raise FloatingPointError("some activation is NaN or infinite")
        return np.asarray(logits)


def run_clouds(
    *,
    edge: int = 24,
    largest: int = 500_000,
    architecture: Architecture = VARIANTS["T"],
) -> Campaign:
    """Sends every extreme cloud through the network, as it is and normalised.

    Args:
      edge: Edge of the dense block that decides the static shapes, in voxels.
      largest: Voxels of the largest cloud, for which only maps are built.
      architecture: The network, of coordinates and normals.

    Returns:
      For each cloud, the outcome; "same" stands for finite numbers, equal twice.
    """
    campaign = Campaign()
    network = _Network(dense_block(edge), architecture)
    clouds = EXTREME | {
        "a dense block": (lambda: dense_block(edge), False),
        f"{largest} voxels": (lambda: many_voxels(largest), False),
    }
    cuts = {"raw": _cut_raw, "normalised": _cut_normalized}
    for name, (make, refused) in clouds.items():
        for form, cut in cuts.items():
            _try(campaign, f"{name}, {form}", network, make, cut, refused)
    for name, (size, refused) in _VOXEL_SIZES.items():
        cut = functools.partial(_cut_raw, voxel_size=size)
        make = functools.partial(dense_block, 3)
        _try(campaign, f"{name} voxel size", network, make, cut, refused)
    return campaign


def _features(points: Points) -> Float[np.ndarray, "points 6"]:
    normals = np.zeros_like(points)
    normals[:, 2] = 1
    return np.concatenate([np.clip(points, -1, 1), normals], axis=1)


def _cut_raw(points: Points, voxel_size: float = VOXEL_SIZE) -> VoxelCloud:
    return voxelize(points, _features(points), voxel_size=voxel_size, name=_NAME)


def _cut_normalized(points: Points) -> VoxelCloud:
    cloud = PointCloud(points, _features(points)[:, 3:], -1, _NAME)
    rng = np.random.default_rng(0)
    return voxelize_cloud(cloud, rng, voxel_size=VOXEL_SIZE, normals=True, recipe=None)


def _try(
    campaign: Campaign,
    name: str,
    network: _Network,
    make: Callable[[], Points],
    cut: Callable[[Points], VoxelCloud],
    refused: bool | None,
) -> None:
    """Counts what becomes of one cloud."""
    fault = "forward passes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            voxels = cut(make())
        logits = network.logits(voxels)
        moved = logits
        if logits is not None and voxels.coords.max() < 2**31 - 1 - _SHIFT:
            moved = network.logits(voxels, shift=_SHIFT)
    except FloatingPointError as error:
        outcome, message = WRONG, str(error)
    except Exception as error:
        outcome, message = judge_error(error, _NAME, "voxel_size")
        if refused is False:
            outcome, message = WRONG, f"refused: {message}"
    else:
        outcome, message = SAME, ""
        if voxels.coords.min() < 0 or not np.isfinite(voxels.features).all():
            outcome, message = WRONG, f"voxels at {voxels.coords.min(0).tolist()}"
        if logits is not None and not np.array_equal(logits, np.asarray(moved)):
            outcome, message = WRONG, "other logits after moving the cloud"
        if refused:
            outcome, message = WRONG, "accepted"
        if logits is None:
            fault = "maps only"
    campaign.add(name, outcome, fault=fault, message=message)
