"""Tiny stand-ins that let the tests run every experiment in seconds."""

from pathlib import Path

import numpy as np

from e3dsnn_jax.backbone import Architecture

ARCHITECTURE = Architecture(6, 2, (2,), (1,))
"""The smallest network with everything a real one has."""
VOXEL_SIZE = 0.4
BATCH_SIZE = 4
CLASS_NAMES = ("ball", "box", "rod")


def write_shards(folder: Path, *, clouds: int = 6, points: int = 64) -> Path:
    """Writes two training shards and a test shard of balls, boxes and rods.

    Args:
      folder: Where to write; made if it is absent.
      clouds: Clouds in each shard.
      points: Points in each cloud.

    Returns:
      The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train_0", "train_1", "test_0")):
        rng = np.random.default_rng(number)
        label = np.arange(clouds) % len(CLASS_NAMES)
        ball = rng.standard_normal((clouds, points, 3))
        ball /= np.linalg.norm(ball, axis=2, keepdims=True)
        # The largest coordinate of a point of a box is 1, and rods are long in z.
        box = ball / np.abs(ball).max(axis=2, keepdims=True)
        rod = ball * (0.2, 0.2, 1.0)
        shapes = np.stack([ball, box, rod])[label, np.arange(clouds)]
        np.savez(
            folder / f"{name}.npz",
            points=shapes.astype(np.float32),
            normals=ball.astype(np.float32),
            label=label,
        )
    (folder / "shape_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    return folder
