"""How far a nearest neighbour on coarse occupancy counts gets on a data set.

    python -m experiments.shapes_baseline
    python -m experiments.shapes_baseline --data ../shared/data/kicad40

Every normalised cloud becomes the number of its points in each of grid^3 cells of the
cube [-1, 1]^3; a test cloud gets the class of the training cloud whose counts are
nearest. It is what a data set gives away without any notion of shape: the embedded
shapes are built so that it stays below 75 %, and KiCad40 gives about 65 % (71 % on
square roots of the counts). The last line is JSON.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, Int

from e3dsnn_jax.data.augment import normalize
from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset, labels_of
from e3dsnn_jax.data.open import open_dataset


@dataclasses.dataclass(frozen=True)
class Config:
    """Nearest neighbour on occupancy counts."""

    data: Path | None = None
    """Data folder; the embedded shapes if omitted."""
    grid: int = 8
    """Cells along each axis."""
    points_per_cloud: int | None = None
    """Thin out clouds to this many points first."""


def occupancy_counts(cloud: PointCloud, grid: int) -> Float[np.ndarray, " cells"]:
    """Points of the normalised cloud in each cell of the cube [-1, 1]^3."""
    cell = np.floor((normalize(cloud).points + 1) / 2 * grid).astype(int)
    cell = cell.clip(0, grid - 1)  # a coordinate of exactly 1 belongs to the last cell
    flat = np.ravel_multi_index(tuple(cell.T), (grid, grid, grid))
    return np.bincount(flat, minlength=grid**3).astype(np.float64)


def nearest_rows(
    queries: Float[np.ndarray, "queries cells"], rows: Float[np.ndarray, "rows cells"]
) -> Int[np.ndarray, " queries"]:
    """Index of the row with the smallest Euclidean distance to each query."""
    # The queries' own squared norms shift all distances alike and are left out.
    return ((rows**2).sum(axis=1) - 2 * queries @ rows.T).argmin(axis=1)


def baseline(
    train: ShapeDataset, test: ShapeDataset, grid: int
) -> dict[str, float | int]:
    """Accuracies, between 0 and 1, of the neighbours and of the largest class."""
    counts, queries = (
        np.stack([occupancy_counts(dataset[i], grid) for i in range(len(dataset))])
        for dataset in (train, test)
    )
    labels, truth = labels_of(train), labels_of(test)
    plain = labels[nearest_rows(queries, counts)] == truth
    rooted = labels[nearest_rows(np.sqrt(queries), np.sqrt(counts))] == truth
    largest = np.bincount(labels).argmax()
    return {
        "classes": len(train.class_names),
        "train_clouds": len(train),
        "test_clouds": len(test),
        "grid": grid,
        "nearest_neighbour": round(float(plain.mean()), 4),
        "nearest_neighbour_on_roots": round(float(rooted.mean()), 4),
        "largest_class": round(float((truth == largest).mean()), 4),
    }


def main(config: Config) -> None:
    """Prints the baseline of a data set, as JSON on the last line."""
    began = time.perf_counter()
    train, test = (
        open_dataset(config.data, split, points_per_cloud=config.points_per_cloud)
        for split in ("train", "test")
    )
    result = baseline(train, test, config.grid)
    name = "embedded shapes" if config.data is None else config.data.name
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"dataset": name, **result, "seconds": seconds}))


if __name__ == "__main__":
    main(tyro.cli(Config))
