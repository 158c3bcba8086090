"""Layers on binary spikes: each binary step adds what its zeros and ones send.

An integer spike n of a time step is n binary spikes among its D binary steps. A linear
layer runs over its T x D binary steps with `lax.scan` and adds up their currents, which
are those of the integer spikes. Hardware needs additions of weights for a step and no
products; the code here multiplies the zeros and ones in a matrix product all the same,
which is what JAX does fast, and it is `event_executor` that only adds. In float64 the
convolutions have an executor of their own, as `sparse_conv` adds in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Bool, Float

from e3dsnn_jax.events import are_spikes
from e3dsnn_jax.kernel_map import KernelMap, match_rows
from e3dsnn_jax.layer_calls import LayerCall
from e3dsnn_jax.sparse_conv import sparse_conv

Linear = Callable[[Float[Array, "voxels_in c_in"]], Float[Array, "voxels_out c_out"]]
"""A layer without bias, on one binary step."""


def add_binary_steps(
    spikes: Float[Array, "voxels_in time c_in"], step: Linear, *, levels: int
) -> Float[Array, "voxels_out time c_out"]:
    """Currents of a layer that receives its spikes as T x D binary steps.

    Args:
      spikes: Whole numbers 0..levels; if any is not, the result is NaN throughout.
      step: What the layer makes of one binary step; it is given zeros and ones.
      levels: Binary steps of a time step (D).
    """
    held = jnp.all(are_spikes(spikes, levels))
    poison = jnp.where(held, 0.0, jnp.nan).astype(spikes.dtype)

    def time_step(_, integers):
        def binary_step(currents, slot):
            fed: Bool[Array, "voxels_in c_in"] = integers > slot
            return currents + step(fed.astype(spikes.dtype)), None

        start = jnp.full(shape.shape, poison, shape.dtype)
        currents, _ = jax.lax.scan(binary_step, start, slots)
        return None, currents

    slots = jnp.arange(levels).astype(spikes.dtype)
    shape = jax.eval_shape(step, spikes[:, 0])
    _, currents = jax.lax.scan(time_step, None, jnp.moveaxis(spikes, 1, 0))
    return jnp.moveaxis(currents, 0, 1)


def binary_conv(
    spikes: Float[Array, "voxels_in time c_in"],
    kernel: Float[Array, "offsets c_in c_out"],
    kernel_map: KernelMap,
    *,
    num_out: int,
    levels: int,
) -> Float[Array, "{num_out} time c_out"]:
    """`sparse_conv` of integer spikes, computed from their binary steps.

    Args:
      spikes: Whole numbers 0..levels.
      kernel: One matrix an offset, float32 or float64.
      kernel_map: The pairs.
      num_out: Row capacity of the output.
      levels: Binary steps of a time step (D).
    """
    step = _convolution_step(kernel, kernel_map, num_out)
    return add_binary_steps(spikes.astype(kernel.dtype), step, levels=levels)


def linear_step(call: LayerCall) -> Linear:
    """What a layer of a network makes of one binary step, its bias left out."""
    if call.kernel_map is None:
        return _dense_step(call.kernel)
    return _convolution_step(call.kernel, call.kernel_map, call.num_out)


def wide_conv(
    rows: Float[Array, "voxels_in c_in"],
    kernel: Float[Array, "offsets c_in c_out"],
    kernel_map: KernelMap,
    *,
    num_out: int,
) -> Float[Array, "{num_out} c_out"]:
    """A sparse convolution that adds in the type of its kernel, float64 too.

    Args:
      rows: Inputs of that type, real or spikes.
      kernel: One matrix an offset.
      kernel_map: The pairs; if it was cut, the result is NaN throughout.
      num_out: Row capacity of the output.
    """
    kernel_map = match_rows(kernel_map, num_in=len(rows), num_out=num_out)
    overflow = kernel_map.blocks_needed > kernel_map.capacity
    padded = jnp.pad(rows, ((0, 1), (0, 0)))

    def block(total, entry):
        senders, receivers, offset = entry
        messages = jnp.matmul(
            padded[senders], kernel[offset], precision=jax.lax.Precision.HIGHEST
        )
        added = jraph.segment_sum(messages, receivers, num_segments=num_out)
        return total + added, None

    poison = jnp.where(overflow, jnp.nan, 0.0).astype(kernel.dtype)
    start = jnp.full((num_out, kernel.shape[-1]), poison)
    blocks = kernel_map.senders, kernel_map.receivers, kernel_map.offset
    return jax.lax.scan(block, start, blocks)[0]


def _dense_step(kernel: Array) -> Linear:
    return lambda rows: jnp.matmul(
        rows.astype(kernel.dtype), kernel, precision=jax.lax.Precision.HIGHEST
    )


def _convolution_step(kernel: Array, kernel_map: KernelMap, num_out: int) -> Linear:
    def step(rows: Array) -> Array:
        rows = rows.astype(kernel.dtype)
        if kernel.dtype == jnp.float64:
            return wide_conv(rows, kernel, kernel_map, num_out=num_out)
        return sparse_conv(
            rows, kernel, kernel_map, num_out=num_out, integer_inputs=True
        )

    return step
