"""Coordinates that are hard for kernel maps, as every module's tests need them."""

import numpy as np


def random_coords(
    rng: np.random.Generator,
    *,
    extent: tuple[int, ...] = (6, 7, 5),
    batch: int = 2,
    density: float = 0.3,
) -> np.ndarray:
    """Sorted unique (batch, cell) rows of a random subset of a full grid."""
    cells = np.argwhere(rng.random((batch, *extent)) < density)
    return cells.astype(np.int32)


def hard_coords(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Named cases: empty, one voxel, full block, one cloud empty, sparse, a line."""
    second_only = random_coords(rng)
    line = np.zeros((9, 4), np.int32)
    line[:, 3] = np.arange(9)
    return {
        "empty": np.zeros((0, 4), np.int32),
        "one": np.array([[0, 3, 0, 2]], np.int32),
        "full": random_coords(rng, extent=(3, 4, 3), density=2.0),
        "second cloud only": second_only[second_only[:, 0] == 1],
        "sparse": random_coords(rng, density=0.05),
        "dense": random_coords(rng, density=0.6),
        "line": line,
    }
