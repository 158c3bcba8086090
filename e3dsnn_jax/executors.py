"""Executors of the sparse convolution: three ways to the same sums, of four.

* **blocks** (CPU): a loop over the blocks that exist, each a gather, one product and
  a scatter-add. Spare capacity costs nothing.
* **gathered** (accelerators): one step a kernel offset, which gathers the row that
  meets each output, if any, and adds its product. No scatter of features: no atomic
  additions, so that a run repeats bit for bit, and nothing that a TPU is slow at; the
  rows without a partner are multiplied in vain.
* **batched**: all blocks at once as one batched product and one segment-sum; less work
  than gathering, but its additions come in any order on a GPU.

The fourth, for TPUs, is in `run_executor`.

Each is a forward pass `(rows, kernel, kernel_map, num_out=)` and a backward pass
`(rows, kernel, kernel_map, cotangent, input_gradient=)`. `rows` and `cotangent` carry a
row of zeros at their end, which the entries of a map without a pair refer to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float, Float32, Int32

from e3dsnn_jax.kernel_map import KernelMap

# Up to so many input channels an elementwise product beats a matrix product on CPU.
_ELEMENTWISE_CHANNELS = 16
# Up to so many input channels the products of a CPU with a transposed left side are so
# slow that writing the transposed rows first pays.
_TRANSPOSE_CHANNELS = 32
# Maps hold valid rows alone: no index is checked, or counted from the end.
IN_BOUNDS: Any = {"mode": "promise_in_bounds", "wrap_negative_indices": False}


class Executor(NamedTuple):
    """A forward and a backward pass."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def _gather(rows, index, dtype):
    """Rows of every pair as `[..., pairs * time, channels]`, as real numbers."""
    flat = rows.reshape(len(rows), -1)
    taken = flat.at[index].get(**IN_BOUNDS)
    return taken.reshape(*index.shape[:-1], -1, rows.shape[-1]).astype(dtype)


def _product(left, right):
    """Matrix product; elementwise over few channels, where it is faster on CPU."""
    if left.shape[-1] <= _ELEMENTWISE_CHANNELS:
        terms = left[:, :, None].astype(jnp.float32) * right[None].astype(jnp.float32)
        return jnp.sum(terms, axis=1)
    return dot(left, right)


def dot(
    left: Float[Array, "*batch rows terms"], right: Float[Array, "*batch terms columns"]
) -> Float[Array, "*batch rows columns"]:
    """Matrix products, summed in float32."""
    # Accelerators would round float32 operands to fewer digits unless asked not to;
    # who wants that asks for bfloat16.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.matmul(
        left, right, precision=precision, preferred_element_type=jnp.float32
    )


def start_of(kernel_map: KernelMap, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Zeros to accumulate on, or NaN if the map is truncated."""
    overflow = kernel_map.blocks_needed > kernel_map.capacity
    return jnp.full(shape, jnp.where(overflow, jnp.nan, 0.0).astype(jnp.float32))


def _forward_blocks(rows, kernel, kernel_map, *, num_out):
    time, c_out = rows.shape[1], kernel.shape[-1]

    def block(index, outputs):
        taken = _gather(rows, kernel_map.senders[index], kernel.dtype)
        # With an axis of time before it, the elementwise product is not fused.
        product = _product if time == 1 else dot
        messages = product(taken, kernel[kernel_map.offset[index]])
        return _add_to_rows(outputs, kernel_map.receivers[index], messages)

    used = jnp.minimum(kernel_map.blocks_needed, kernel_map.capacity)
    start = start_of(kernel_map, (num_out + 1, time * c_out))
    outputs = jax.lax.fori_loop(0, used, block, start)
    return outputs[:num_out].reshape(num_out, time, c_out)


def _add_to_rows(total, index, messages):
    """Adds `[pairs * time, channels]` to rows of `[rows, time * channels]`.

    With an axis more, XLA copies the messages to another layout first.
    """
    return total.at[index].add(messages.reshape(len(index), -1), **IN_BOUNDS)


def _backward_blocks(rows, kernel, kernel_map, cotangent, *, input_gradient):
    num_in, time, c_in = rows.shape
    c_out = kernel.shape[-1]

    def block(index, carry):
        d_inputs, d_kernel = carry
        senders, offset = kernel_map.senders[index], kernel_map.offset[index]
        taken = _gather(rows, senders, kernel.dtype)
        given = _gather(cotangent, kernel_map.receivers[index], cotangent.dtype)
        columns = taken.T
        if c_in <= _TRANSPOSE_CHANNELS:
            columns = jax.lax.optimization_barrier(columns)
        d_matrix = d_kernel[offset] + dot(columns, given)
        # `.at[offset].add` would compile to a scatter, with tests of its one index.
        d_kernel = jax.lax.dynamic_update_index_in_dim(d_kernel, d_matrix, offset, 0)
        if input_gradient:
            messages = dot(given, kernel[offset].T)
            d_inputs = _add_to_rows(d_inputs, senders, messages)
        return d_inputs, d_kernel

    used = jnp.minimum(kernel_map.blocks_needed, kernel_map.capacity)
    start = (
        start_of(kernel_map, (num_in if input_gradient else 1, time * c_in)),
        start_of(kernel_map, (kernel.shape[0], c_in, c_out)),
    )
    d_inputs, d_kernel = jax.lax.fori_loop(0, used, block, start)
    if not input_gradient:
        d_inputs = jnp.zeros((num_in, time * c_in))
    return d_inputs[:-1].reshape(-1, time, c_in), d_kernel


def _sum_to_rows(messages, index, num_rows):
    """Segment-sum of `[blocks, pairs * time, channels]` to their rows."""
    flat = messages.reshape(index.size, -1, messages.shape[-1])
    return jraph.segment_sum(flat, index.reshape(-1), num_segments=num_rows)


def _forward_batched(rows, kernel, kernel_map, *, num_out):
    taken = _gather(rows, kernel_map.senders, kernel.dtype)
    messages = dot(taken, kernel[kernel_map.offset])
    outputs = _sum_to_rows(messages, kernel_map.receivers, num_out)
    return outputs + start_of(kernel_map, (1, 1, 1))


def _backward_batched(rows, kernel, kernel_map, cotangent, *, input_gradient):
    taken = _gather(rows, kernel_map.senders, kernel.dtype)
    given = _gather(cotangent, kernel_map.receivers, cotangent.dtype)
    per_block = dot(taken.mT, given)
    d_kernel = jraph.segment_sum(
        per_block, kernel_map.offset, num_segments=kernel.shape[0]
    )
    poison = start_of(kernel_map, (1, 1, 1))
    num_in, time, c_in = rows.shape
    if not input_gradient:
        return jnp.zeros((num_in - 1, time, c_in)), d_kernel + poison
    messages = dot(given, kernel[kernel_map.offset].mT)
    d_inputs = _sum_to_rows(messages, kernel_map.senders, num_in)[:-1]
    return d_inputs + poison, d_kernel + poison


def _partners(
    targets: Int32[Array, "blocks pairs"],
    partners: Int32[Array, "blocks pairs"],
    kernel_map: KernelMap,
    num_offsets: int,
    num_targets: int,
    num_partners: int,
) -> Int32[Array, "{num_offsets} {num_targets}"]:
    """The partner of each row under each offset; the last one, of zeros, without one.

    A row has at most one under an offset, so that no two entries meet in a place.
    """
    table = jnp.full((num_offsets, num_targets + 1), num_partners - 1, jnp.int32)
    offset = jnp.broadcast_to(kernel_map.offset[:, None], targets.shape)
    table = table.at[offset, targets].set(partners, **IN_BOUNDS)
    return table[:, :-1]


def _forward_gathered(rows, kernel, kernel_map, *, num_out):
    senders, receivers = kernel_map.senders, kernel_map.receivers
    table = _partners(receivers, senders, kernel_map, len(kernel), num_out, len(rows))
    time, c_out = rows.shape[1], kernel.shape[-1]

    def add(total, step):
        index, matrix = step
        return total + dot(_gather(rows, index, kernel.dtype), matrix), None

    start = start_of(kernel_map, (num_out * time, c_out))
    total, _ = jax.lax.scan(add, start, (table, kernel))
    return total.reshape(num_out, time, c_out)


def _backward_gathered(rows, kernel, kernel_map, cotangent, *, input_gradient):
    num_in, time, c_in = rows.shape
    num_in -= 1
    senders, receivers = kernel_map.senders, kernel_map.receivers
    table = _partners(
        senders, receivers, kernel_map, len(kernel), num_in, len(cotangent)
    )

    def add(total, step):
        index, matrix = step
        given = _gather(cotangent, index, cotangent.dtype)
        if input_gradient:
            total = total + dot(given, matrix.T)
        # Rows without a partner meet zeros, which would not silence a NaN or infinity.
        paired = (index < len(cotangent) - 1)[:, None, None]
        taken = jnp.where(paired, rows[:-1], 0).astype(kernel.dtype)
        return total, dot(taken.reshape(-1, c_in).T, given)

    start = start_of(kernel_map, (num_in * time, c_in))
    d_inputs, d_kernel = jax.lax.scan(add, start, (table, kernel))
    if not input_gradient:
        d_inputs = jnp.zeros_like(d_inputs)
    d_kernel = d_kernel + start_of(kernel_map, (1, 1, 1))
    return d_inputs.reshape(num_in, time, c_in), d_kernel


BLOCKS = Executor(_forward_blocks, _backward_blocks)
GATHERED = Executor(_forward_gathered, _backward_gathered)
BATCHED = Executor(_forward_batched, _backward_batched)
