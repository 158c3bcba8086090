"""Handwritten digits, and the dense networks of the SVCCA tutorial trained on them.

Digits come from MNIST where it is given, else from scikit-learn's `load_digits`. The
networks are the tutorial's: three hidden layers of equal width and ten outputs.
"""

import gzip
import importlib
import itertools
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

_IDX_AXES = {2051: 3, 2049: 1}
_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
_BATCH_SIZE = 128

Parameters = list[tuple[Float[Array, "c_in c_out"], Float[Array, " c_out"]]]


class Digits(NamedTuple):
    """Images of digits, in two splits; pixels lie in [0, 1]."""

    name: str
    train_images: Float[np.ndarray, "train pixels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: Float[np.ndarray, "test pixels"]
    test_labels: Int[np.ndarray, " test"]


def read_mnist(path: Path) -> Digits:
    """Reads MNIST.

    Args:
      path: A folder with the four IDX files, compressed (.gz) or not, or an .npz file
        with x_train and x_test [images, height, width], y_train and y_test [images].

    Raises:
      ValueError: If the path, a file, an array or its shape is not what MNIST has.
    """
    if path.is_dir():
        arrays = [_read_idx(path, name) for name in _IDX_NAMES]
    elif path.is_file():
        arrays = _read_npz(path)
    else:
        raise ValueError(f"{path} is no folder or file with MNIST")
    for images, labels in (arrays[:2], arrays[2:]):
        same = images.ndim == 3 and labels.shape == images.shape[:1]
        if not same or images.shape[1:] != arrays[0].shape[1:] or not images.size:
            raise ValueError(
                f"{path}: images {images.shape} and labels {labels.shape} do not "
                "match [images, height, width] and [images]"
            )
        if images.dtype != np.uint8:
            raise ValueError(f"{path}: pixels are {images.dtype}, not uint8")
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"{path}: the labels are not digits from 0 to 9")
    return _as_digits("MNIST", *arrays, brightest=255)


def read_small_digits() -> Digits:
    """Reads scikit-learn's 1,797 digits of 8 x 8 pixels, the last 1,000 for testing.

    Raises:
      ValueError: If scikit-learn is not installed.
    """
    try:
        load_digits = importlib.import_module("sklearn.datasets").load_digits
    except ImportError as error:
        raise ValueError(
            "MNIST was not found and scikit-learn, whose digits would replace it, is "
            "not installed: give --mnist DIR, or pip install -e '.[digits]'"
        ) from error
    loaded = load_digits()
    images, labels = loaded.images, loaded.target
    train, test = slice(0, -1000), slice(-1000, None)
    arrays = images[train], labels[train], images[test], labels[test]
    return _as_digits("digits", *arrays, brightest=16)


def _as_digits(
    name: str,
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    brightest: int,
) -> Digits:
    flat = [
        images.reshape(len(images), -1).astype(np.float32) / np.float32(brightest)
        for images in (train, test)
    ]
    labels = [array.astype(np.int32) for array in (train_labels, test_labels)]
    return Digits(name, flat[0], labels[0], flat[1], labels[1])


def _read_idx(folder: Path, name: str) -> np.ndarray:
    path = next(
        (p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None
    )
    if path is None:
        raise ValueError(f"{folder} holds no {name} or {name}.gz")
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        (magic,) = struct.unpack_from(">I", data)
        axes = _IDX_AXES[magic]
        shape = struct.unpack_from(f">{axes}I", data, 4)
    except (OSError, EOFError, LookupError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is cut or no IDX file of MNIST: {error}") from error
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} holds {len(values)} bytes for an array {shape}")
    return values.reshape(shape)


def _read_npz(path: Path) -> list[np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return [file[name] for name in _NPZ_NAMES]
    except (
        EOFError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} is no readable mnist.npz: {error}") from error


def init_network(widths: list[int], *, key: Key[Array, ""]) -> Parameters:
    """Kernels scaled for rectified neurons, and biases of 0.

    Args:
      widths: Neurons of every layer, the pixels first.
      key: The key is consumed.
    """
    scale = jax.nn.initializers.he_normal()
    shapes = list(itertools.pairwise(widths))
    keys = jax.random.split(key, len(shapes))
    return [
        (scale(one, shape), jnp.zeros(shape[1]))
        for one, shape in zip(keys, shapes, strict=True)
    ]


def forward(
    parameters: Parameters, images: Float[Array, "images pixels"]
) -> list[Float[Array, "images neurons"]]:
    """Activations of every layer: after the rectifier, and the logits last."""
    layers = [images]
    for number, (kernel, bias) in enumerate(parameters, 1):
        outputs = layers[-1] @ kernel + bias[None, :]
        layers.append(outputs if number == len(parameters) else jax.nn.relu(outputs))
    return layers[1:]


def train_network(
    digits: Digits, *, width: int, steps: int, key: Key[Array, ""]
) -> Parameters:
    """Trains a dense network with Adam on batches of 128 drawn at random.

    Args:
      digits: The images to classify.
      width: Neurons of each of the three hidden layers.
      steps: Number of batches.
      key: The key is consumed.
    """
    init_key, batch_key = jax.random.split(key)
    pixels = digits.train_images.shape[1]
    start = init_network([pixels, width, width, width, 10], key=init_key)
    drawn = jax.random.randint(
        batch_key, (steps, _BATCH_SIZE), 0, len(digits.train_labels)
    )
    return _fit(start, digits.train_images, digits.train_labels, drawn)


@jax.jit
def _fit(
    parameters: Parameters, images: Array, labels: Array, drawn: Array
) -> Parameters:
    optimizer = optax.adam(1e-3)

    def loss(parameters: Parameters, batch: Array) -> Array:
        logits = forward(parameters, images[batch])[-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        return jnp.mean(losses)

    def step(carry: tuple, batch: Array) -> tuple[tuple, None]:
        parameters, state = carry
        gradient = jax.grad(loss)(parameters, batch)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), None

    return jax.lax.scan(step, (parameters, optimizer.init(parameters)), drawn)[0][0]
