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

LAYER = "datapoints neurons"
MAPS = "datapoints height width channels"


def as_activations(
    x: ArrayLike,
    name: str,
    *,
    axes: str = LAYER,
    mask: Bool[Array, " _datapoints"] | None = None,
    complex_too: bool = False,
    shift: bool = True,
) -> Inexact[Array, "..."]:
    """Returns one layer's activations as a JAX array of floats, checked.

    Integers, booleans and floats below float32 become float32; NumPy's float64 and its
    integers of 32 and 64 bits become float64 where JAX has 64-bit types enabled. Where
    it has not, they lose their first row before they are rounded, for every similarity
    is of centred activations and a large offset would swallow the signal.

    Args:
      x: Activations with the axes that `axes` names.
      name: What an error calls them.
      axes: Names of the axes, separated by spaces.
      mask: True on the datapoints that count; others may hold anything.
      complex_too: Whether complex activations are welcome.
      shift: Whether the first row may be taken off.

    Raises:
      ValueError: For another number of axes, an empty axis, complex activations, and
        one that is NaN, infinite or too large for its type (with its first index),
        unless the array is being traced.
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
    if not isinstance(x, jax.Array):
        x = _from_host(np.asarray(x), shift=shift)
    # Known values are checked even where a caller's `jit` closes over them.
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(x)
        if jnp.issubdtype(array.dtype, jnp.integer) and shift:
            array = array - array[:1]
        wide = jnp.issubdtype(array.dtype, jnp.inexact)
        if not wide or jnp.finfo(array.dtype).bits < 32:
            array = array.astype(jnp.float32)
        if jnp.iscomplexobj(array) and not complex_too:
            raise ValueError(f"{name} is {array.dtype}: this takes real activations")
        good = jnp.isfinite(array)
        if mask is not None:
            good |= ~mask.reshape(mask.shape + (1,) * (array.ndim - 1))
        known = not isinstance(good, jax.core.Tracer)
        finite = not known or bool(good.all())
    if not finite:
        bad = np.argwhere(~np.asarray(good))
        first = tuple(int(i) for i in bad[0])
        where = ", ".join(f"{a}={i}" for a, i in zip(names, first, strict=True))
        raise ValueError(
            f"{name} holds {len(bad)} values that are NaN or infinite (in "
            f"{array.dtype}), the first ({np.asarray(array)[first]}) at {where}"
        )
    return array


def _from_host(x: np.ndarray, *, shift: bool) -> np.ndarray:
    """Keeps the signal of wide NumPy arrays that JAX would round to float32."""
    if x.dtype.kind not in "iuf" or x.dtype.itemsize < 4 or x.dtype == np.float32:
        return x
    x = x.astype(np.float64)
    if jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        return x
    if shift and np.isfinite(x[:1]).all():
        x = x - x[:1]
    with np.errstate(over="ignore"):  # found, and named, as infinite
        return x.astype(np.float32)


def as_pair(
    x: ArrayLike,
    y: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    axes: str = LAYER,
    complex_too: bool = False,
) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."], Bool[Array, "..."] | None]:
    """Returns two layers' activations, of one float type, and the mask, checked.

    Raises:
      ValueError: As `as_activations` and `check_mask`, and if the numbers of datapoints
        differ.
    """
    check_datapoints([x, y], ["x", "y"])
    checked = check_mask(mask, np.shape(x)[0] if np.ndim(x) else 0)
    first, second = (
        as_activations(layer, name, axes=axes, mask=checked, complex_too=complex_too)
        for layer, name in ((x, "x"), (y, "y"))
    )
    dtype = np.promote_types(first.dtype, second.dtype)
    return first.astype(dtype), second.astype(dtype), checked


def check_datapoints(layers: Sequence[ArrayLike], names: Sequence[str]) -> None:
    """Raises a `ValueError` if layers do not have the same number of datapoints."""
    counts = [np.shape(layer)[:1] for layer in layers]
    for count, name in zip(counts[1:], names[1:], strict=True):
        if count != counts[0] and count and counts[0]:
            raise ValueError(
                f"{names[0]} has {counts[0][0]} datapoints and {name} has "
                f"{count[0]}: rows must be the same datapoints (layers are "
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
