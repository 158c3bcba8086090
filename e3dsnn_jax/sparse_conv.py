"""The spike sparse convolution: gather, matrix product and sum over a map.

One function with its own derivative. Which of the `executors` runs is chosen
statically, from the platform, behind it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from e3dsnn_jax.executors import BATCHED, BLOCKS, GATHERED
from e3dsnn_jax.kernel_map import KernelMap, match_rows
from e3dsnn_jax.run_executor import RUNS


class _Static(NamedTuple):
    """What a convolution knows before it is traced (hashable)."""

    num_out: int
    integer_inputs: bool
    input_gradient: bool
    deterministic: bool
    out_dtype: Any


def sparse_conv(
    inputs: Float[Array, " voxels_in *time c_in"],
    kernel: Float[Array, "offsets kernel_in c_out"],
    kernel_map: KernelMap,
    *,
    num_out: int,
    integer_inputs: bool = False,
    input_gradient: bool = True,
    deterministic: bool = True,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, " {num_out} *time c_out"]:
    r"""Sparse convolution along a kernel map (cross-correlation).

    .. math:: y_o = \sum_{(i, o, k)} x_i W_k

    Submanifold, strided and inverse convolutions differ in the map alone. Rows that
    no pair reaches, padding rows among them, are exactly 0.

    Args:
      inputs: Features of the input rows; padding rows may hold anything.
      kernel: One matrix an offset, in the row-major order of the kernel's offsets.
      kernel_map: The pairs; if its blocks overflow, or under `jit` if it was made for
        other rows, the result is NaN throughout: nothing may be computed on a truncated
        or foreign map. With `runs` a TPU follows those; other platforms ignore them.
      num_out: Row capacity of the output.
      integer_inputs: Inputs are whole numbers 0..127 (spikes): they travel as int8,
        exactly and four times smaller. Whatever int8 cannot hold, a NaN or a larger
        number, in padding rows too, makes the whole result NaN.
      input_gradient: Whether the derivative by `inputs` is wanted; without it (the
        network's first layer) the backward pass is cheaper and that gradient is 0,
        without a warning: do not differentiate by `inputs` then.
      deterministic: Whether the sums must come in the same order each time. Without
        it a GPU may add in any order, for less work; a CPU always keeps its order.
      out_dtype: Type of the outputs; that of `kernel` if omitted.

    Returns:
      The output rows, accumulated in float32.

    Raises:
      ValueError: If channels do not fit together, or rows and a map that is known, or
        the kernel and the map's runs.

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
    _check_runs(kernel_map, len(kernel), inputs.shape[0], num_out)
    kernel_map = match_rows(kernel_map, num_in=inputs.shape[0], num_out=num_out)
    time = inputs.shape[1:-1]
    flat = inputs.reshape(inputs.shape[0], int(np.prod(time)), inputs.shape[-1])
    dtype = jnp.dtype(kernel.dtype if out_dtype is None else out_dtype)
    static = _Static(num_out, integer_inputs, input_gradient, deterministic, dtype)
    outputs: Array = _conv(static, jnp.asarray(flat), jnp.asarray(kernel), kernel_map)
    return outputs.reshape(num_out, *time, kernel.shape[-1])


def _check_runs(kernel_map, num_offsets, num_in, num_out):
    runs = kernel_map.runs
    if runs is None:
        return
    steps, rows_out = runs.forward.shape
    given = runs.follow_senders.shape[0] - 1, rows_out
    if num_offsets % steps or given != (num_in, num_out):
        raise ValueError(
            f"the map's runs are {steps} steps from {given[0]} rows to {given[1]}, but "
            f"the kernel has {num_offsets} offsets and goes from {num_in} rows to "
            f"{num_out}: make the runs for this kernel and these rows (`add_runs`)"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(static, inputs, kernel, kernel_map) -> Any:
    return _forward(static, inputs, kernel, kernel_map)[0]


def _run(static, kernel_map, phase, operands, options):
    """Runs a phase, "forward" or "backward", of the platform's executor."""
    accelerated = GATHERED if static.deterministic else BATCHED
    branches = {"cpu": BLOCKS, "default": accelerated}
    if kernel_map.runs is not None:
        branches["tpu"] = RUNS
    return jax.lax.platform_dependent(
        *operands,
        **{
            platform: functools.partial(getattr(executor, phase), **options)
            for platform, executor in branches.items()
        },
    )


def _forward(static, inputs, kernel, kernel_map):
    rows, poison = inputs, None
    if static.integer_inputs:
        # What int8 cannot hold, NaN among it, must not end as another number. Asked
        # once for all of them: a test in every gather took a fifth of the forward pass.
        held = ((inputs >= -128) & (inputs <= 127)).all()
        poison = jnp.where(held, 0.0, jnp.nan).astype(jnp.float32)
        rows = inputs.astype(jnp.int8)
    rows = _with_padding_row(rows)
    operands, options = (rows, kernel, kernel_map), {"num_out": static.num_out}
    outputs = _run(static, kernel_map, "forward", operands, options)
    if poison is not None:
        outputs = outputs + poison
    # The zero-size array carries the dtype of the inputs to the backward pass.
    residuals = rows, kernel, kernel_map, inputs[:0], poison
    return outputs.astype(static.out_dtype), residuals


def _backward(static, residuals, cotangent):
    rows, kernel, kernel_map, like, poison = residuals
    cotangent = _with_padding_row(cotangent.astype(kernel.dtype))
    operands = rows, kernel, kernel_map, cotangent
    options = {"input_gradient": static.input_gradient}
    d_inputs, d_kernel = _run(static, kernel_map, "backward", operands, options)
    if poison is not None:
        d_kernel = d_kernel + poison
    no_gradient = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), kernel_map
    )
    return d_inputs.astype(like.dtype), d_kernel.astype(kernel.dtype), no_gradient


def _with_padding_row(rows):
    """Adds the row that "no pair" entries read, so that no gather needs a mask."""
    return jnp.pad(rows, ((0, 1), (0, 0), (0, 0)))


_conv.defvjp(_forward, _backward)
