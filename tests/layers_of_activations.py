"""Pairs of related layers, for the tests of every similarity."""

import numpy as np


def related(
    rng: np.random.Generator, datapoints: int = 120, x: int = 8, y: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Two layers that see three common signals under their own noise, in float32."""
    latent = rng.standard_normal((datapoints, 3))
    first = latent @ rng.standard_normal((3, x)) + rng.standard_normal((datapoints, x))
    second = latent @ rng.standard_normal((3, y)) + rng.standard_normal((datapoints, y))
    return first.astype(np.float32), second.astype(np.float32)


def rotation(rng: np.random.Generator, neurons: int) -> np.ndarray:
    """A random orthogonal matrix in float32."""
    return np.linalg.qr(rng.standard_normal((neurons, neurons)))[0].astype(np.float32)


def padded(
    rng: np.random.Generator, *layers: np.ndarray, rows: int
) -> tuple[np.ndarray, ...]:
    """The mask of `rows` rows, and the layers spread over them among huge values."""
    mask = np.zeros(rows, bool)
    mask[rng.permutation(rows)[: len(layers[0])]] = True
    spread = []
    for layer in layers:
        full = np.full((rows, *layer.shape[1:]), 1e3, layer.dtype)
        full[mask] = layer
        spread.append(full)
    return (mask, *spread)
