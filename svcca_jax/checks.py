"""Checks of what a caller passes in; they run on the host, before anything is traced.

Inside a caller's own `jit` the values are not known yet: there, a NaN or an infinite
activation makes the result NaN instead of an error.
"""

from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact
from numpy.typing import ArrayLike


def as_activations(
    x: ArrayLike, name: str, *, axes: str = "datapoints neurons"
) -> Inexact[Array, "..."]:
    """Returns one layer's activations as a JAX array, checked.

    Integers, booleans and floats below float32 become floats: float32, or float64
    where JAX has 64-bit types enabled and the input asks for it.

    Args:
      x: Activations with the axes that `axes` names.
      name: What an error calls them.
      axes: Names of the axes, separated by spaces.

    Raises:
      ValueError: For another number of axes, an empty axis, and a NaN or infinite
        activation (with its first index), unless the array is being traced.
    """
    names = axes.split()
    shape = np.shape(x)
    if len(shape) != len(names):
        raise ValueError(
            f"{name} must have {len(names)} axes [{', '.join(names)}], got "
            f"{len(shape)}: shape {shape}"
        )
    for axis, size in zip(names, shape, strict=True):
        if size == 0:
            raise ValueError(f"{name} is empty: it has 0 {axis}, shape {shape}")
    # Known values are checked even where a caller's `jit` closes over them.
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(x)
        wide = jnp.issubdtype(array.dtype, jnp.inexact)
        if not wide or jnp.finfo(array.dtype).bits < 32:
            array = array.astype(jnp.float32)
        known = not isinstance(array, jax.core.Tracer)
        finite = not known or bool(jnp.isfinite(array).all())
    if not finite:
        bad = np.argwhere(~np.isfinite(np.asarray(array)))
        first = tuple(int(i) for i in bad[0])
        where = ", ".join(f"{a}={i}" for a, i in zip(names, first, strict=True))
        raise ValueError(
            f"{name} holds {len(bad)} values that are NaN or infinite, the first "
            f"({np.asarray(array)[first]}) at {where}"
        )
    return array


def as_pair(
    x: ArrayLike, y: ArrayLike, *, axes: str = "datapoints neurons"
) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."]]:
    """Returns two layers' activations on the same datapoints, of one float type.

    Raises:
      ValueError: As `as_activations`, and if the numbers of datapoints differ.
    """
    first = as_activations(x, "x", axes=axes)
    second = as_activations(y, "y", axes=axes)
    check_datapoints([first, second], ["x", "y"])
    dtype = np.promote_types(first.dtype, second.dtype)
    return first.astype(dtype), second.astype(dtype)


def check_datapoints(
    layers: Sequence[Inexact[Array, "..."]], names: Sequence[str]
) -> None:
    """Raises a `ValueError` if layers do not have the same number of datapoints."""
    for layer, name in zip(layers[1:], names[1:], strict=True):
        if layer.shape[0] != layers[0].shape[0]:
            raise ValueError(
                f"{names[0]} has {layers[0].shape[0]} datapoints and {name} has "
                f"{layer.shape[0]}: rows must be the same datapoints (layers are "
                "[datapoints, neurons])"
            )


def check_mask(
    mask: ArrayLike | None, datapoints: int
) -> Bool[Array, " datapoints"] | None:
    """Returns the mask of the datapoints that count as a JAX array.

    Raises:
      ValueError: If it is not one boolean for each datapoint.
    """
    if mask is None:
        return None
    array = jnp.asarray(mask)
    if array.shape != (datapoints,) or array.dtype != jnp.bool_:
        raise ValueError(
            f"the mask must be {datapoints} booleans, one for each datapoint, got "
            f"shape {array.shape} of {array.dtype}"
        )
    return array
