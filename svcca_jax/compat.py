"""The calls of google/svcca: same arguments, keys and shapes, and correct results.

Activations are [neurons, datapoints] here, as published; NumPy arrays come back, in
float64 for float64 and integer input. Nothing is printed. Differences that hold for
every function:

- fewer datapoints than neurons, rank-deficient layers and constant neurons are
  compared instead of refused or failed on;
- `epsilon` has no effect: ranks are cut by the rounding error, nothing is added to
  covariances and no neuron is dropped for a small variance, only for being constant;
- `verbose` has no effect;
- layers that do not match raise a `ValueError`, not an `AssertionError`.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from svcca_jax.cca import canonical_variates, leading_mean
from svcca_jax.fourier import common_frequencies, fourier_cca
from svcca_jax.pca import pca
from svcca_jax.pls import pls
from svcca_jax.pwcca import pwcca


def get_cca_similarity(
    acts1: ArrayLike,
    acts2: ArrayLike,
    epsilon: float = 0.0,
    threshold: float = 0.98,
    compute_coefs: bool = True,
    compute_dirns: bool = False,
    verbose: bool = True,
) -> dict[str, Any]:
    """Canonical correlations of two layers, as a dict.

    Args:
      acts1: Activations [neurons1, datapoints].
      acts2: Activations [neurons2, datapoints].
      epsilon: Has no effect.
      threshold: `mean` is over the leading coefficients that hold this share of their
        sum.
      compute_coefs: Add `coef_x`, `invsqrt_xx`, their `full_` forms over all neurons,
        the same for y, and `neuron_means1`, `neuron_means2`.
      compute_dirns: Add `cca_dirns1` and `cca_dirns2` [neurons, datapoints].
      verbose: Has no effect.

    Returns:
      `cca_coef1` and `cca_coef2` (the same, decreasing), `x_idxs` and `y_idxs` (True
      on neurons that are not constant), `mean` and `sum` (pairs), and what was asked
      for. `full_coef_x @ full_invsqrt_xx @ (acts1 - neuron_means1)` are the canonical
      directions of the first layer.

    Raises:
      ValueError: As `cca.cca`.

    Source: `cca_core.py:get_cca_similarity`.
    """
    del epsilon, verbose
    layers = _read(acts1, acts2)
    with _precision(layers):
        result, directions = canonical_variates(*layers)
        mean = float(leading_mean(result.coefficients, threshold))
        sides = [
            _rotate(layer, weights, int(result.num_coefficients))
            for layer, weights in zip(layers, directions[:2], strict=True)
        ]
    x, y = sides
    smaller = int(min(x.live.sum(), y.live.sum()))
    found: dict[str, Any] = {"x_idxs": x.live, "y_idxs": y.live, "mean": (mean, mean)}
    if smaller == 0:
        # Differs from reference: a layer with nothing left has every key, and one
        # coefficient 0 for each neuron of the narrower layer.
        smaller = min(layer.shape[1] for layer in layers)
        found |= {"idx1": 0, "idx2": 0}
    coefficients = np.zeros(smaller, layers[0].dtype)
    known = np.asarray(result.coefficients)[:smaller]
    coefficients[: len(known)] = known
    total = float(coefficients.sum())
    found |= {"cca_coef1": coefficients, "cca_coef2": coefficients}
    found["sum"] = (total, total)
    if compute_coefs:
        for name, number, side in (("x", 1, x), ("y", 2, y)):
            found[f"coef_{name}"] = side.rotation
            found[f"invsqrt_{name}{name}"] = side.whitening
            found[f"full_coef_{name}"] = _spread(side.rotation, side.live)
            found[f"full_invsqrt_{name}{name}"] = _spread(side.whitening, side.live)
            found[f"neuron_means{number}"] = side.means
    if compute_dirns:
        # Differs from reference: the directions are centred; it adds the mean of
        # neuron i to direction i. They need no `compute_coefs` here.
        for number, side, layer in ((1, x, layers[0]), (2, y, layers[1])):
            combined = _spread(side.rotation @ side.whitening, side.live)
            found[f"cca_dirns{number}"] = combined @ _center(layer)[1].T
    return found


def robust_cca_similarity(
    acts1: ArrayLike,
    acts2: ArrayLike,
    threshold: float = 0.98,
    epsilon: float = 1e-6,
    compute_dirns: bool = True,
) -> dict[str, Any]:
    """As `get_cca_similarity`, which is robust already.

    Source: `cca_core.py:robust_cca_similarity`.
    """
    # Differs from reference: no noise is added and nothing is tried again; threshold,
    # epsilon and compute_dirns are passed as what they are, not one place further.
    return get_cca_similarity(
        acts1, acts2, epsilon, threshold, compute_dirns=compute_dirns
    )


def compute_pwcca(
    acts1: ArrayLike, acts2: ArrayLike, epsilon: float = 0.0
) -> tuple[float, np.ndarray, np.ndarray]:
    """Projection-weighted canonical correlation of two layers.

    Args:
      acts1: Activations [neurons1, datapoints].
      acts2: Activations [neurons2, datapoints].
      epsilon: Has no effect.

    Returns:
      The weighted mean, the weights (summing to 1) and the coefficients, weighted by
      the layer with fewer neurons that are not constant (the first if equal).

    Raises:
      ValueError: As `cca.cca`.

    Source: `pwcca.py:compute_pwcca`.
    """
    # Differs from reference: its weights come from directions that are not whitened
    # and not centred (off by up to 0.2), and it fails where the first layer is wider.
    del epsilon
    layers = _read(acts1, acts2)
    live = [int(_live(layer).sum()) for layer in layers]
    with _precision(layers):
        result = jax.device_get(pwcca(*layers))
    weights = result.weights_x if live[0] <= live[1] else result.weights_y
    count = min(live)
    return float(result.value), weights[:count], result.coefficients[:count]


def get_pca(acts: ArrayLike, compute_dirns: bool = False) -> dict[str, Any]:
    """Principal components of one layer.

    Args:
      acts: Activations [neurons, datapoints].
      compute_dirns: Add `pca_dirns` [components, datapoints].

    Returns:
      `eigenvals`, the singular values of the centred activations, and `neuron_coefs`
      [components, neurons].

    Raises:
      ValueError: As `cca.cca`.

    Source: `numpy_pca.py:get_pca`.
    """
    # Differs from reference: each neuron is centred over the datapoints; it subtracts
    # from each datapoint the mean of its neurons. `pca_dirns` are centred.
    (layer,) = _read(acts)
    with _precision([layer]):
        components = jax.device_get(pca(layer))
    coefficients = components.directions.T
    found = {"eigenvals": components.singular_values, "neuron_coefs": coefficients}
    if compute_dirns:
        found["pca_dirns"] = coefficients @ _center(layer)[1].T
    return found


def get_pls_similarity(acts1: ArrayLike, acts2: ArrayLike) -> dict[str, Any]:
    """Partial least squares of two layers.

    Args:
      acts1: Activations [neurons1, datapoints].
      acts2: Activations [neurons2, datapoints].

    Returns:
      `eigenvals`, the covariances along the directions; `neuron_coeffs1` and
      `neuron_coeffs2` [directions, neurons]; `pls_dirns1` and `pls_dirns2`
      [directions, datapoints].

    Raises:
      ValueError: As `cca.cca`.

    Source: `numpy_pls.py:get_pls_similarity`.
    """
    # Differs from reference: layers may have different widths, and the directions are
    # centred over the datapoints, not over the neurons.
    layers = _read(acts1, acts2)
    with _precision(layers):
        values, *directions = jax.device_get(pls(*layers))
    found: dict[str, Any] = {"eigenvals": values}
    for number, (layer, columns) in enumerate(zip(layers, directions, strict=True), 1):
        found[f"neuron_coeffs{number}"] = columns.T
        found[f"pls_dirns{number}"] = columns.T @ _center(layer)[1].T
    return found


def fourier_ccas(
    conv_acts1: ArrayLike,
    conv_acts2: ArrayLike,
    return_coefs: bool = False,
    compute_dirns: bool = False,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Canonical correlations of two layers of maps, frequency by frequency.

    Args:
      conv_acts1: Maps [datapoints, height, width, channels].
      conv_acts2: Maps of any size for the same datapoints.
      return_coefs: Add `neuron_coeffs1` and `neuron_coeffs2`, the complex combinations
        of channels of each direction at that frequency [directions, channels].
      compute_dirns: Add `cca_dirns1` and `cca_dirns2` [directions, datapoints].
      verbose: Has no effect.

    Returns:
      One dict for each frequency: `location`, `cca_coef1`, `cca_coef2`, `mean`, `sum`
      and what was asked for. `pandas.DataFrame` makes the published table of it.

    Raises:
      ValueError: As `fourier.fourier_cca`.

    Source: `dft_ccas.py:fourier_ccas`.
    """
    # Differs from reference: a list of dicts, for no dependency on pandas; maps need
    # not be square; combinations and directions are those of the frequency, where the
    # reference applies an inverse transform over channels and datapoints.
    del verbose
    maps = [np.asarray(acts) for acts in (conv_acts1, conv_acts2)]
    dtype = _float_type(*maps)
    maps = [array.astype(dtype) for array in maps]
    with _precision(maps):
        result = jax.device_get(fourier_cca(*maps))
        rows = []
        for location in np.ndindex(result.means.shape):
            coefficients = result.coefficients[location]
            mean = float(leading_mean(jnp.asarray(coefficients), 0.98))
            total = float(coefficients.sum())
            row: dict[str, Any] = {"location": location}
            row |= {"cca_coef1": coefficients, "cca_coef2": coefficients}
            row |= {"mean": (mean, mean), "sum": (total, total)}
            if return_coefs or compute_dirns:
                at = _at_frequency(maps, location, result.means.shape)
                _, found = jax.device_get(canonical_variates(*at))
                for number in (1, 2):
                    if return_coefs:
                        row[f"neuron_coeffs{number}"] = found[number - 1].T
                    if compute_dirns:
                        row[f"cca_dirns{number}"] = found[number + 1].T
            rows.append(row)
    return rows


class _Side(NamedTuple):
    """One layer of a pair, in the published form."""

    live: np.ndarray
    means: np.ndarray
    rotation: np.ndarray
    whitening: np.ndarray


def _rotate(layer: np.ndarray, weights: ArrayLike, count: int) -> _Side:
    """Splits canonical weights into a whitening and a rotation of the live neurons."""
    live = _live(layer)
    means, centered = _center(layer)
    means = means[:, None]
    if not live.any():
        nothing = np.zeros((0, 0), layer.dtype)
        return _Side(live, means, nothing, nothing)
    components = jax.device_get(pca(layer[:, live]))
    rank = int(components.rank)
    values = components.singular_values[:rank]
    axes = components.directions[:, :rank]
    # In units of the largest covariance, as published.
    centered = centered[:, live]
    largest = np.abs(centered.T @ centered).max()
    whitening = (axes / values) @ axes.T * np.sqrt(largest)
    rows = np.asarray(weights)[live, :count].T @ (axes * values) @ axes.T
    # The rows that belong to no coefficient complete the rotation.
    others = np.linalg.svd(rows)[2][count:] if count else np.eye(live.sum())
    rotation = np.concatenate([rows, others]).astype(layer.dtype)
    return _Side(live, means, rotation, whitening.astype(layer.dtype))


def _at_frequency(
    maps: list[np.ndarray], location: tuple[int, ...], shape: tuple[int, ...]
) -> list[np.ndarray]:
    found = []
    for array in maps:
        place = [
            common_frequencies(size, smaller)[index]
            for size, smaller, index in zip(
                array.shape[1:3], shape, location, strict=True
            )
        ]
        found.append(np.fft.fft2(array, axes=(1, 2))[:, place[0], place[1]])
    return found


def _read(*layers: ArrayLike) -> list[np.ndarray]:
    """Returns the layers as [datapoints, neurons], of one float type."""
    arrays = [np.asarray(layer) for layer in layers]
    for number, array in enumerate(arrays, 1):
        if array.ndim != 2:
            raise ValueError(
                f"acts{number} must have 2 axes [neurons, datapoints], got shape "
                f"{array.shape}"
            )
    if len({array.shape[1] for array in arrays}) > 1:
        raise ValueError(
            f"acts1 has {arrays[0].shape[1]} datapoints and acts2 has "
            f"{arrays[1].shape[1]}: layers are [neurons, datapoints] here"
        )
    dtype = _float_type(*arrays)
    return [array.T.astype(dtype) for array in arrays]


def _float_type(*arrays: np.ndarray) -> np.dtype:
    for array in arrays:
        if np.iscomplexobj(array):
            raise ValueError(f"activations must be real, got {array.dtype}")
    return np.result_type(np.float32, *(array.dtype for array in arrays))


def _precision(layers: list[np.ndarray]) -> contextlib.AbstractContextManager[Any]:
    return jax.enable_x64(layers[0].dtype.itemsize > 4)


def _center(layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means of the neurons and the centred layer."""
    # In float64: a sum of large offsets has few digits of float32.
    means = layer.mean(axis=0, dtype=np.float64)
    return means.astype(layer.dtype), (layer - means).astype(layer.dtype)


def _live(layer: np.ndarray) -> np.ndarray:
    return (layer != layer[:1]).any(axis=0)


def _spread(square: np.ndarray, live: np.ndarray) -> np.ndarray:
    full = np.zeros((len(live), len(live)), square.dtype)
    full[np.ix_(live, live)] = square
    return full
