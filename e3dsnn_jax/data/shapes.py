"""The embedded dataset: procedural shapes of sixteen classes, no download needed.

It is made to be honest: what tells the classes apart are parts and structure, not where
the mass lies, so that a nearest neighbour on coarse occupancy counts fails on a quarter
of it (`python -m experiments.shapes_baseline`) while a network that sees shapes does
not. It is no benchmark, and its numbers are never reported as ModelNet's.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.data.augment import normalize, rotation_matrix
from e3dsnn_jax.data.cache import CloudSource
from e3dsnn_jax.data.clouds import PointCloud, Split, check_index
from e3dsnn_jax.data.solids import LYING, SOLIDS
from e3dsnn_jax.data.surfaces import row_norms, sample_surface

NUM_CLOUDS: dict[Split, int] = {"train": 2000, "test": 400}
"""Default sizes of the two splits."""


STRETCH = 0.3
"""Largest logarithm of the factor by which an axis is stretched."""
TILT_DEGREES = 8.0
"""Standard deviation of the tilt about the two level axes, cut at twice as much."""
LYING_SHARE = 0.3
"""How often one of the `LYING` kinds lies on its side."""
MOST_LOST = 0.3
"""Largest share of the surface missing around one place, in half of the clouds."""
UNEVENNESS = 1.5
"""Largest logarithm of how much denser the near side is than the middle."""
NOISE = 0.02
"""Largest standard deviation of the noise on coordinates, in radii of the cloud."""


@dataclass(frozen=True)
class ProceduralShapes:
    """Random furniture and parts, each a pure function of (seed, split, index).

    Classes take turns along the index. A shape is stretched, turned about z by any
    angle, tilted, perhaps laid on its side, and scanned unevenly, with a part missing
    and with noise, as much as the constants of this module say. One cloud takes about
    4 ms, so `open_dataset(None, split)` keeps them.
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


def shapes_source(
    split: Split, *, points_per_cloud: int = 1024, num_clouds: int | None = None
) -> CloudSource:
    """The embedded dataset with seed 0, to be cached; a change of its code counts."""
    shapes = ProceduralShapes(
        split, NUM_CLOUDS[split] if num_clouds is None else num_clouds, points_per_cloud
    )
    folder = Path(__file__).parent
    return CloudSource(
        None,
        f"shapes-{split}-{len(shapes)}-{points_per_cloud}",
        shapes.class_names,
        (Path(__file__),),
        (-1,),
        functools.partial(_generate, shapes),
        tuple(folder / f"{name}.py" for name in ("augment", "solids", "surfaces")),
    )


def _generate(shapes: ProceduralShapes, path: Path, label: int) -> list[PointCloud]:
    """All shapes; stands for reading them from a file."""
    del path, label
    return [shapes[index] for index in range(len(shapes))]


def _scan(
    kind: str, num_points: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points 3"]]:
    """One posed, unevenly and incompletely scanned, noisy shape of a kind."""
    surface = SOLIDS[kind](rng)
    candidates = round(1.7 * num_points)
    lost = rng.uniform(0, MOST_LOST) if rng.random() < 0.5 else 0.0
    points, normals = sample_surface(surface, round(candidates / (1 - lost)), rng)
    seen = np.argsort(row_norms(points - points[0]))[len(points) - candidates :]
    points, normals = points[seen], normals[seen]

    # The side that faces the scanner collects more points.
    facing = rng.standard_normal(3)
    facing *= rng.uniform(0, UNEVENNESS) / np.linalg.norm(facing)
    middle = points - points.mean(axis=0)
    weight = np.exp(middle @ facing / np.abs(middle).max())
    # The smallest of exponential times are a draw without replacement by weight.
    drawn = np.argsort(rng.exponential(size=candidates) / weight)[:num_points]

    stretch = np.exp(rng.uniform(-STRETCH, STRETCH, size=3))
    tilt = rng.standard_normal(3).clip(-2, 2) * np.deg2rad(TILT_DEGREES) * (1, 1, 0)
    rotation = rotation_matrix(np.array([0, 0, rng.uniform(0, 2 * np.pi)]))
    rotation = rotation_matrix(tilt) @ rotation
    if kind in LYING and rng.random() < LYING_SHARE:
        rotation = rotation @ rotation_matrix(np.array([np.pi / 2, 0, 0]))
    points = points[drawn] * stretch @ rotation.T
    normals = normals[drawn] / stretch
    normals /= row_norms(normals)[:, None]
    normals = (normals @ rotation.T).astype(np.float32)
    unit = normalize(PointCloud(points.astype(np.float32), None, -1, kind)).points
    noise = rng.uniform(0, NOISE) * rng.standard_normal(unit.shape)
    return unit + noise.astype(np.float32), normals
