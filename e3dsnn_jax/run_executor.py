"""The executor of the sparse convolution for TPUs, along the runs of a map.

A TPU gathers rows one after the other, two cycles each however narrow they are, up to
128 channels; and its matrix unit multiplies 128 channels as fast as 16. So each step
gathers one wide row for all offsets of a run, which holds the rows of their partners
beside each other, and multiplies it at once by their matrices. The wide rows are made
beforehand, without gathering, since partners in a run are neighbouring rows; one
variant for each place that a run can begin with.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Num

from e3dsnn_jax.executors import IN_BOUNDS, Executor, dot, start_of
from e3dsnn_jax.kernel_map import later_places


def _wide_rows(
    rows: Num[Array, "rows time channels"], follow: Int32[Array, " rows"], run: int
) -> Num[Array, "wide_rows time wide_channels"]:
    """Rows with what follows them, for a run that begins with each place in turn."""
    # To lay a number beside each channel of a row is slow: once, not in every test.
    follow = jax.lax.broadcast_in_dim(follow, rows.shape, (0,))
    follow = jax.lax.optimization_barrier(follow)
    further = [
        jnp.pad(rows[distance:], ((0, distance), (0, 0), (0, 0)))
        for distance in range(run)
    ]
    nothing = jnp.zeros_like(rows)
    variants = [
        [nothing] * place + [rows] + [nothing] * (run - 1 - place)
        for place in range(run)
    ]
    for number, (begin, later) in enumerate(later_places(run)):
        distance = (follow >> 2 * number) & 3
        for far in range(1, later - begin + 1):
            variants[begin][later] = jnp.where(
                distance == far, further[far], variants[begin][later]
            )
    return jnp.concatenate([jnp.concatenate(slots, -1) for slots in variants])


def _take(wide, first, dtype):
    """Wide rows as `[rows * time, run * channels]`."""
    taken = wide.at[first].get(**IN_BOUNDS)
    return taken.reshape(-1, wide.shape[-1]).astype(dtype)


def _forward(rows, kernel, kernel_map, *, num_out):
    runs: Any = kernel_map.runs
    steps = len(runs.forward)
    wide = _wide_rows(rows, runs.follow_senders, len(kernel) // steps)
    time, c_out = rows.shape[1], kernel.shape[-1]

    def add(total, step):
        first, matrix = step
        return total + dot(_take(wide, first, kernel.dtype), matrix), None

    matrices = kernel.reshape(steps, -1, c_out)
    start = start_of(kernel_map, (num_out * time, c_out))
    total, _ = jax.lax.scan(add, start, (runs.forward, matrices))
    return total.reshape(num_out, time, c_out)


def _backward(rows, kernel, kernel_map, cotangent, *, input_gradient):
    runs: Any = kernel_map.runs
    steps, (_, c_in, c_out) = len(runs.forward), kernel.shape
    run, (num_in, time) = len(kernel) // steps, rows[:-1].shape[:2]
    # In a map that is its own mirror image, offset k of a sender is the k-th from the
    # end of a receiver, and its run from the end is the receiver's from the front.
    first = runs.forward[::-1] if runs.backward is None else runs.backward
    follow = runs.follow_receivers
    wide = _wide_rows(cotangent, runs.follow_senders if follow is None else follow, run)
    # Rows without any partner meet zeros, which would not silence a NaN or infinity.
    paired = jnp.any(first != len(cotangent) - 1, axis=0)[:, None, None]
    columns = jnp.where(paired, rows[:-1], 0).astype(kernel.dtype)
    columns = columns.reshape(-1, c_in).T

    def add(total, step):
        first, matrix = step
        given = _take(wide, first, cotangent.dtype)
        if input_gradient:
            total = total + dot(given, matrix)
        return total, dot(columns, given)

    backwards = kernel.reshape(steps, run, c_in, c_out)[:, ::-1].swapaxes(2, 3)
    matrices = backwards.reshape(steps, run * c_out, c_in)
    start = start_of(kernel_map, (num_in * time, c_in))
    d_inputs, d_kernel = jax.lax.scan(add, start, (first, matrices))
    if not input_gradient:
        d_inputs = jnp.zeros_like(d_inputs)
    d_kernel = d_kernel.reshape(steps, c_in, run, c_out)[:, :, ::-1].swapaxes(1, 2)
    d_kernel = d_kernel.reshape(kernel.shape) + start_of(kernel_map, (1, 1, 1))
    return d_inputs.reshape(num_in, time, c_in), d_kernel


RUNS = Executor(_forward, _backward)
