"""The spike sparse convolution: gather, matrix product and segment-sum over a map.

One function with its own derivative. Which executor runs is chosen statically, from
the platform and the channels, behind it:

* **blocks** (CPU): a loop over the blocks that exist, each a gather, one product and
  a scatter-add. Spare capacity costs nothing.
* **batched** (accelerators): all blocks at once as one batched product and one
  segment-sum, so that no loop serialises kernels.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Float

from e3dsnn_jax.kernel_map import KernelMap

# Below this many input channels an elementwise product beats a matrix product on CPU.
_ELEMENTWISE_CHANNELS = 8

# What a NaN is while spikes travel as int8, which has none: it must reach the output.
_NAN_SPIKE = -128


class _Static(NamedTuple):
    """What a convolution knows before it is traced (hashable)."""

    num_out: int
    integer_inputs: bool
    input_gradient: bool


def sparse_conv(
    inputs: Float[Array, " voxels_in *time c_in"],
    kernel: Float[Array, "offsets kernel_in c_out"],
    kernel_map: KernelMap,
    *,
    num_out: int,
    integer_inputs: bool = False,
    input_gradient: bool = True,
) -> Float[Array, " {num_out} *time c_out"]:
    r"""Sparse convolution along a kernel map (cross-correlation).

    .. math:: y_o = \sum_{(i, o, k)} x_i W_k

    Submanifold, strided and inverse convolutions differ in the map alone. Rows that
    no pair reaches, padding rows among them, are exactly 0.

    Args:
      inputs: Features of the input rows; padding rows may hold anything.
      kernel: One matrix an offset, in the row-major order of the kernel's offsets.
      kernel_map: The pairs; if its blocks overflow, the result is NaN throughout, as
        nothing may be computed on a truncated map.
      num_out: Row capacity of the output.
      integer_inputs: Inputs are whole numbers 0..127 (spikes): they travel as int8,
        exactly and four times smaller. A NaN among them stays one.
      input_gradient: Whether the derivative by `inputs` is wanted; without it (the
        network's first layer) the backward pass is cheaper and that gradient is 0,
        without a warning: do not differentiate by `inputs` then.

    Returns:
      The output rows, accumulated in float32 and returned in the dtype of `kernel`.

    Raises:
      ValueError: If channels, offsets or the time axis do not fit together.

    Source: spike sparse convolution of E-3DSNN (AAAI 2025), eq. 1; `SubMConv3d`,
    `SparseConv3d` and `SparseInverseConv3d` of the published stack.
    """
    if inputs.shape[-1] != kernel.shape[1]:
        raise ValueError(
            f"inputs have {inputs.shape[-1]} channels but the kernel takes "
            f"{kernel.shape[1]}"
        )
    if kernel_map.senders.ndim != 2:
        raise ValueError(
            "sparse_conv takes one map, senders [blocks, pairs], got "
            f"{kernel_map.senders.shape}: drop or map over the leading axis"
        )
    # Host arrays are welcome too; the loops below index them by traced numbers.
    kernel_map = jax.tree.map(jnp.asarray, kernel_map)
    time = inputs.shape[1:-1]
    flat = inputs.reshape(inputs.shape[0], int(np.prod(time)), inputs.shape[-1])
    static = _Static(num_out, integer_inputs, input_gradient)
    outputs: Array = _conv(static, jnp.asarray(flat), jnp.asarray(kernel), kernel_map)
    return outputs.reshape(num_out, *time, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(static, inputs, kernel, kernel_map) -> Any:
    return _forward(static, inputs, kernel, kernel_map)[0]


def _forward(static, inputs, kernel, kernel_map):
    rows = inputs
    if static.integer_inputs:
        rows = jnp.where(jnp.isnan(inputs), _NAN_SPIKE, inputs).astype(jnp.int8)
    rows = _with_padding_row(rows)
    outputs = jax.lax.platform_dependent(
        rows,
        kernel,
        kernel_map,
        cpu=functools.partial(_forward_blocks, num_out=static.num_out),
        default=functools.partial(_forward_batched, num_out=static.num_out),
    )
    # The zero-size array carries the dtype of the inputs to the backward pass.
    return outputs.astype(kernel.dtype), (rows, kernel, kernel_map, inputs[:0])


def _backward(static, residuals, cotangent):
    rows, kernel, kernel_map, like = residuals
    cotangent = _with_padding_row(cotangent)
    options = {"input_gradient": static.input_gradient}
    d_inputs, d_kernel = jax.lax.platform_dependent(
        rows,
        kernel,
        kernel_map,
        cotangent,
        cpu=functools.partial(_backward_blocks, **options),
        default=functools.partial(_backward_batched, **options),
    )
    no_gradient = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), kernel_map
    )
    return d_inputs.astype(like.dtype), d_kernel.astype(kernel.dtype), no_gradient


_conv.defvjp(_forward, _backward)


def _with_padding_row(rows):
    """Adds the row that "no pair" entries read, so that no gather needs a mask."""
    return jnp.pad(rows, ((0, 1), (0, 0), (0, 0)))


def _gather(rows, index, dtype):
    """Rows of every pair as `[..., pairs * time, channels]`, as real numbers."""
    taken = rows.at[index].get(mode="promise_in_bounds")
    taken = taken.reshape(*index.shape[:-1], -1, rows.shape[-1])
    if rows.dtype != jnp.int8:
        return taken.astype(dtype)
    return jnp.where(taken == _NAN_SPIKE, jnp.nan, taken.astype(dtype))


def _product(left, right):
    """Matrix product; elementwise over few channels, where it is faster on CPU."""
    if left.shape[-1] <= _ELEMENTWISE_CHANNELS:
        terms = left[:, :, None].astype(jnp.float32) * right[None].astype(jnp.float32)
        return jnp.sum(terms, axis=1)
    return _dot(left, right)


def _dot(left, right):
    """Matrix products, summed in float32."""
    # Accelerators would round float32 operands to fewer digits unless asked not to;
    # who wants that asks for bfloat16.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.matmul(
        left, right, precision=precision, preferred_element_type=jnp.float32
    )


def _start(kernel_map, shape):
    """Zeros to accumulate on, or NaN if the map is truncated."""
    overflow = kernel_map.blocks_needed > kernel_map.capacity
    return jnp.full(shape, jnp.where(overflow, jnp.nan, 0.0).astype(jnp.float32))


def _forward_blocks(rows, kernel, kernel_map, *, num_out):
    time, c_out = rows.shape[1], kernel.shape[-1]

    def block(index, outputs):
        taken = _gather(rows, kernel_map.senders[index], kernel.dtype)
        messages = _product(taken, kernel[kernel_map.offset[index]])
        return outputs.at[kernel_map.receivers[index]].add(
            messages.reshape(-1, time, c_out), mode="promise_in_bounds"
        )

    used = jnp.minimum(kernel_map.blocks_needed, kernel_map.capacity)
    start = _start(kernel_map, (num_out + 1, time, c_out))
    return jax.lax.fori_loop(0, used, block, start)[:num_out]


def _backward_blocks(rows, kernel, kernel_map, cotangent, *, input_gradient):
    num_in, time, c_in = rows.shape
    c_out = kernel.shape[-1]

    def block(index, carry):
        d_inputs, d_kernel = carry
        senders, offset = kernel_map.senders[index], kernel_map.offset[index]
        taken = _gather(rows, senders, kernel.dtype)
        given = _gather(cotangent, kernel_map.receivers[index], cotangent.dtype)
        d_matrix = _dot(taken.T, given)
        d_kernel = d_kernel.at[offset].add(d_matrix, mode="promise_in_bounds")
        if input_gradient:
            messages = _product(given, kernel[offset].T)
            d_inputs = d_inputs.at[senders].add(
                messages.reshape(-1, time, c_in), mode="promise_in_bounds"
            )
        return d_inputs, d_kernel

    used = jnp.minimum(kernel_map.blocks_needed, kernel_map.capacity)
    start = (
        _start(kernel_map, (num_in if input_gradient else 1, time, c_in)),
        _start(kernel_map, (kernel.shape[0], c_in, c_out)),
    )
    d_inputs, d_kernel = jax.lax.fori_loop(0, used, block, start)
    if not input_gradient:
        d_inputs = jnp.zeros((num_in, time, c_in))
    return d_inputs[:-1], d_kernel


def _sum_to_rows(messages, index, num_rows):
    """Segment-sum of `[blocks, pairs * time, channels]` to their rows."""
    flat = messages.reshape(index.size, -1, messages.shape[-1])
    return jraph.segment_sum(flat, index.reshape(-1), num_segments=num_rows)


def _forward_batched(rows, kernel, kernel_map, *, num_out):
    taken = _gather(rows, kernel_map.senders, kernel.dtype)
    messages = _dot(taken, kernel[kernel_map.offset])
    outputs = _sum_to_rows(messages, kernel_map.receivers, num_out)
    return outputs + _start(kernel_map, (1, 1, 1))


def _backward_batched(rows, kernel, kernel_map, cotangent, *, input_gradient):
    taken = _gather(rows, kernel_map.senders, kernel.dtype)
    given = _gather(cotangent, kernel_map.receivers, cotangent.dtype)
    per_block = _dot(taken.mT, given)
    d_kernel = jraph.segment_sum(
        per_block, kernel_map.offset, num_segments=kernel.shape[0]
    )
    poison = _start(kernel_map, (1, 1, 1))
    num_in, time, c_in = rows.shape
    if not input_gradient:
        return jnp.zeros((num_in - 1, time, c_in)), d_kernel + poison
    messages = _dot(given, kernel[kernel_map.offset].mT)
    d_inputs = _sum_to_rows(messages, kernel_map.senders, num_in)[:-1]
    return d_inputs + poison, d_kernel + poison
