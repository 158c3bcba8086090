"""The embedded dataset: procedural shapes of sixteen classes, no download needed.

It is made to be honest: what tells the classes apart are parts and structure, not where
the mass lies, so that a nearest neighbour on coarse occupancy counts fails on a quarter
of it (`python -m experiments.shapes_baseline`) while a network that sees shapes does
not. It is no benchmark, and its numbers are never reported as ModelNet's.
"""

from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.data.augment import normalize, rotation_matrix
from e3dsnn_jax.data.clouds import PointCloud, Split, check_index
from e3dsnn_jax.data.solids import SOLIDS
from e3dsnn_jax.data.surfaces import sample_surface

NUM_CLOUDS: dict[Split, int] = {"train": 2000, "test": 400}
"""Default sizes of the two splits."""


@dataclass(frozen=True)
class ProceduralShapes:
    """Random furniture and parts, each a pure function of (seed, split, index).

    Classes take turns along the index. A shape is posed with any rotation about z, a
    small tilt and a stretch of up to 20 % an axis, loses up to a quarter of its surface
    around one place in half the cases, and its points carry noise of up to 2 % of its
    radius. One cloud takes about 2 ms: `open_dataset(None, split)` keeps them all.
    """

    split: Split
    num_clouds: int
    points_per_cloud: int = 1024
    seed: int = 0
    """Only for the train split; the test split is the same for every seed."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the sixteen classes."""
        return tuple(SOLIDS)

    @property
    def labels(self) -> Int[np.ndarray, " clouds"]:
        """The label of every cloud."""
        return np.arange(self.num_clouds, dtype=np.int32) % len(SOLIDS)

    def __len__(self) -> int:
        return self.num_clouds

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        position = check_index(index, self.num_clouds)
        # The first word keeps the splits apart, so no seed repeats a test shape.
        words = (0, self.seed, position) if self.split == "train" else (1, position)
        rng = np.random.default_rng(np.random.SeedSequence(words))
        label = position % len(SOLIDS)
        kind = self.class_names[label]
        points, normals = _scan(kind, self.points_per_cloud, rng)
        name = f"shapes/{self.split}[{position}] {kind}"
        return PointCloud(points, normals, label, name)


def _scan(
    kind: str, num_points: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points 3"]]:
    """One posed, incomplete and noisy shape of a kind."""
    surface = SOLIDS[kind](rng)
    lost = rng.uniform(0, 0.25) if rng.random() < 0.5 else 0.0
    points, normals = sample_surface(surface, round(num_points / (1 - lost)), rng)
    distance = ((points - points[0]) ** 2).sum(axis=1)
    kept = np.argsort(distance)[len(points) - num_points :]
    stretch = rng.uniform(0.8, 1.2, size=3)
    tilt = rng.normal(scale=np.deg2rad(4), size=3).clip(-0.2, 0.2) * (1, 1, 0)
    turn = np.array([0, 0, rng.uniform(0, 2 * np.pi)])
    rotation = rotation_matrix(tilt) @ rotation_matrix(turn)
    points = points[kept] * stretch @ rotation.T
    normals = normals[kept] / stretch
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals = (normals @ rotation.T).astype(np.float32)
    unit = normalize(PointCloud(points.astype(np.float32), None, -1, kind)).points
    noise = rng.uniform(0, 0.02) * rng.standard_normal(unit.shape, dtype=np.float32)
    order = rng.permutation(num_points)
    return (unit + noise.astype(np.float32))[order], normals[order]
