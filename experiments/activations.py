"""Activations of the SVCCA repository: pickled arrays, read without unpickling them."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.plain_pickle import read_plain_pickle


class Pair(NamedTuple):
    """The same layer of two networks, on the same datapoints."""

    name: str
    x: Float[np.ndarray, "datapoints neurons_x"]
    y: Float[np.ndarray, "datapoints neurons_y"]


def read_activations(path: Path) -> Float[np.ndarray, "datapoints neurons"]:
    """Reads one layer's activations, a pickled NumPy array, without unpickling it.

    Args:
      path: A pickle, gzipped or not, of one array of floats. Published are both
        [neurons, datapoints] and [datapoints, neurons]: the longer axis is taken for
        the datapoints, of which a comparison needs several for each neuron.

    Raises:
      ValueError: If the file is missing, cut, or holds anything else.

    Source: google/svcca, folder `activations`.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        array = _read_array(data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"cannot read the activations {path}: {error}") from error
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{path} holds an array {array.shape}, not a matrix")
    if not np.isfinite(array).all():
        raise ValueError(f"{path} holds values that are NaN or infinite")
    return array.T if array.shape[0] < array.shape[1] else array


def _read_array(data: bytes) -> np.ndarray:
    # An array's pickle makes an empty one, puts its state on the stack, and ends with
    # BUILD and STOP. Without that BUILD it is a pickle of the state: plain values.
    if not data.endswith(b"b."):
        raise ValueError("it is cut, or no pickled NumPy array")
    calls = {
        f"{module}.multiarray _reconstruct": _reconstruct
        for module in ("numpy.core", "numpy._core")
    }
    state = read_plain_pickle(
        data[:-2] + b".",
        calls={**calls, "numpy ndarray": None, "numpy dtype": _float_type},
        persistent=_refuse_reference,
    )
    match state:
        case (int(), tuple(shape), np.dtype() as dtype, bool(by_columns), bytes(raw)):
            sizes = all(isinstance(size, int) and size >= 0 for size in shape)
        case _:
            raise ValueError("it holds no NumPy array")
    if not sizes or len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it holds {len(raw)} bytes for an array {shape} of {dtype}")
    order = "F" if by_columns else "C"
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _reconstruct(*arguments: Any) -> None:
    del arguments


def _float_type(name: Any, *arguments: Any) -> np.dtype:
    del arguments
    if name not in ("f2", "f4", "f8"):
        raise ValueError(f"its elements are {name!r}, not floats")
    return np.dtype(name)


def _refuse_reference(identity: Any) -> None:
    raise ValueError(f"it refers to {identity!r} outside the file")


def read_pairs(folder: Path) -> list[Pair]:
    """Reads every layer that two networks have in a folder and its subfolders.

    Args:
      folder: Holds `model_0_LAYER.p` and `model_1_LAYER.p`.

    Raises:
      ValueError: If there are none, a partner is missing, or a file is refused.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of activations")
    pairs = []
    for first in sorted(folder.rglob("model_0_*.p")):
        layer = first.stem.removeprefix("model_0_")
        second = first.with_name(f"model_1_{layer}.p")
        x, y = read_activations(first), read_activations(second)
        if len(x) != len(y):
            raise ValueError(
                f"{first} has {len(x)} datapoints and {second} has {len(y)}"
            )
        where = first.parent.relative_to(folder).as_posix()
        pairs.append(Pair(f"{where} {layer}".removeprefix(". "), x, y))
    if not pairs:
        raise ValueError(f"{folder} holds no model_0_*.p with a model_1_*.p beside it")
    return pairs
