"""Digits as maps for the networks of this package."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.mnist import read_mnist, read_small_digits

_LEAST_SIDE = 24


class Images(NamedTuple):
    """Images of digits in two splits; pixels lie in [0, 1]."""

    name: str
    train: Float[np.ndarray, "train height width 1"]
    train_labels: Int[np.ndarray, " train"]
    test: Float[np.ndarray, "test height width 1"]
    test_labels: Int[np.ndarray, " test"]


def open_images(mnist: Path | None) -> Images:
    """Reads MNIST from a path, else from ../shared/data, else scikit-learn's digits.

    Images of fewer than 24 pixels a side (scikit-learn's have 8) have every pixel
    repeated, so that the convolutional network has room.

    Raises:
      ValueError: As `mnist.read_mnist` and `mnist.read_small_digits`.
    """
    root = Path(__file__).resolve().parents[2]
    shared = Path(os.environ.get("E3DSNN_SHARED", root.parent / "shared")) / "data"
    if mnist is None and (shared / "mnist").is_dir():
        mnist = shared / "mnist"
    digits = read_mnist(mnist) if mnist else read_small_digits()
    train, test = (_as_maps(x) for x in (digits.train_images, digits.test_images))
    return Images(digits.name, train, digits.train_labels, test, digits.test_labels)


def _as_maps(
    images: Float[np.ndarray, "images pixels"],
) -> Float[np.ndarray, "images height width 1"]:
    side = round(images.shape[1] ** 0.5)
    if side * side != images.shape[1]:
        raise ValueError(f"images of {images.shape[1]} pixels are not square")
    maps = images.reshape(-1, side, side, 1)
    repeats = -(-_LEAST_SIDE // side)
    return maps.repeat(repeats, axis=1).repeat(repeats, axis=2)
