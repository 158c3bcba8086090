"""Spike-driven inference: every linear layer is fed zeros and ones alone.

The networks train with integer spikes 0..D. Here an integer spike n of a time step is n
binary spikes among its D binary steps (`spike.unroll_spikes`); a layer runs over its
T x D binary steps with `lax.scan` and adds up what each of them sends, so that it
needs additions of weights and no products. The layers with real-valued input are the
first convolution and the head (`real_layers` lists those of a network); they stay as
they are, unless the head is moved onto spikes (`spike_readout`).

The functions work on layers, so that every network made of `SparseConv` and Dense
layers runs with `run_binary`, with the variables that it has. In float64 (variables
and features of that type, under `jax.enable_x64`) the sums are float64 throughout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float

from e3dsnn_jax.kernel_map import KernelMap, match_rows
from e3dsnn_jax.layer_calls import LayerCall, NormCall, replace_layers
from e3dsnn_jax.sparse_conv import sparse_conv
from e3dsnn_jax.spike import Neuron

Linear = Callable[[Float[Array, "voxels_in c_in"]], Float[Array, "voxels_out c_out"]]
"""A layer without bias, on one binary step."""


def run_binary(
    model: nn.Module,
    variables: dict[str, Any],
    *arguments: Any,
    neuron: Neuron,
    **options: Any,
) -> Any:
    """Inference with binary spikes; otherwise `model.apply` with the same arguments.

    Args:
      model: Any network without rematerialisation, in inference.
      variables: Its variables, float32 or float64. `Compute.precision` is not looked
        at: sums have the type of the variables.
      *arguments: What the network is called with.
      neuron: Its neurons, whose levels are the binary steps of a time step.
      **options: Further arguments of the call.

    Returns:
      What the network returns.

    Raises:
      ValueError: If the network has no spikes, or is asked to train.
    """
    if neuron.relu:
        raise ValueError(
            "a network with ReLU has no spikes: it cannot run on binary ones"
        )
    fed: list[str] = []

    def layer(call: LayerCall) -> Array:
        if not call.takes_spikes:
            return _run_integer(call)
        fed.append(call.name)
        step = _linear_step(call)
        outputs = add_binary_steps(call.inputs, step, levels=neuron.levels)
        return outputs if call.bias is None else outputs + call.bias[None, None]

    results = replace_layers(
        model, variables, *arguments, layer=layer, norm=_normalise, **options
    )
    if not fed:
        raise ValueError(
            f"no layer of {type(model).__name__} takes spikes, so nothing was unrolled"
        )
    return results


def run_integer(
    model: nn.Module, variables: dict[str, Any], *arguments: Any, **options: Any
) -> Any:
    """Inference with integer spikes, in the type of the variables.

    In float32 this is `model.apply`; the network's own layers add in float32 always,
    so it is this function that computes in float64.
    """
    return replace_layers(
        model, variables, *arguments, layer=_run_integer, norm=_normalise, **options
    )


def real_layers(
    model: nn.Module, variables: dict[str, Any], *arguments: Any, **options: Any
) -> dict[str, bool]:
    """Every layer in its order, and whether its input is real-valued."""
    found: dict[str, bool] = {}

    def layer(call: LayerCall) -> Array:
        found[call.name] = not call.takes_spikes
        return call.run()

    jax.eval_shape(
        lambda values, inputs: replace_layers(
            model, values, *inputs, layer=layer, **options
        ),
        variables,
        arguments,
    )
    return found


def add_binary_steps(
    spikes: Float[Array, "voxels_in time c_in"], step: Linear, *, levels: int
) -> Float[Array, "voxels_out time c_out"]:
    """Currents of a layer that receives its spikes as T x D binary steps.

    Args:
      spikes: Whole numbers 0..levels; if any is not, the result is NaN throughout.
      step: What the layer makes of one binary step; it is given zeros and ones.
      levels: Binary steps of a time step (D).
    """
    held = (spikes >= 0) & (spikes <= levels) & (spikes == jnp.floor(spikes))
    poison = jnp.where(held.all(), 0.0, jnp.nan).astype(spikes.dtype)

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
    step = _convolution_step(kernel, kernel_map, num_out, binary=True)
    return add_binary_steps(spikes.astype(kernel.dtype), step, levels=levels)


def binary_linear(
    spikes: Float[Array, "voxels time c_in"],
    kernel: Float[Array, "c_in c_out"],
    *,
    levels: int,
) -> Float[Array, "voxels time c_out"]:
    """A linear layer without bias on integer spikes, computed from binary steps.

    Args:
      spikes: Whole numbers 0..levels.
      kernel: The weights, float32 or float64.
      levels: Binary steps of a time step (D).
    """
    step = _dense_step(kernel)
    return add_binary_steps(spikes.astype(kernel.dtype), step, levels=levels)


class Flips(NamedTuple):
    """How two runs of one network on one batch differ."""

    spikes: dict[str, int]
    """Spikes of each layer that differ."""
    neurons: dict[str, int]
    """Spikes of each layer that were compared, padding rows included."""
    predictions: int
    """Clouds whose most probable class differs."""


def compare_runs(
    one: tuple[Float[Array, "clouds classes"], dict[str, Array]],
    other: tuple[Float[Array, "clouds classes"], dict[str, Array]],
) -> Flips:
    """Counts the spikes and predictions that differ between two runs.

    Args:
      one: Logits and activations of a run.
      other: Those of another run on the same batch.
    """
    flipped, neurons = {}, {}
    for name in (key for key in one[1] if key.endswith("/spikes")):
        ours, theirs = np.asarray(one[1][name]), np.asarray(other[1][name])
        flipped[name] = int(np.count_nonzero(ours != theirs))
        neurons[name] = ours.size
    classes = [np.asarray(logits).argmax(-1) for logits, _ in (one, other)]
    return Flips(flipped, neurons, int(np.count_nonzero(classes[0] != classes[1])))


def _linear_step(call: LayerCall) -> Linear:
    if call.kernel_map is None:
        return _dense_step(call.kernel)
    return _convolution_step(call.kernel, call.kernel_map, call.num_out, binary=True)


def _dense_step(kernel: Array) -> Linear:
    return lambda rows: jnp.matmul(
        rows.astype(kernel.dtype), kernel, precision=jax.lax.Precision.HIGHEST
    )


def _convolution_step(
    kernel: Array, kernel_map: KernelMap, num_out: int, *, binary: bool
) -> Linear:
    def step(rows: Array) -> Array:
        rows = rows.astype(kernel.dtype)
        if kernel.dtype == jnp.float64:
            return _wide_conv(rows, kernel, kernel_map, num_out)
        return sparse_conv(
            rows, kernel, kernel_map, num_out=num_out, integer_inputs=binary
        )

    return step


def _run_integer(call: LayerCall) -> Array:
    if call.kernel_map is None or call.kernel.dtype != jnp.float64:
        return call.run()
    inputs = call.inputs.astype(jnp.float64)
    convolve = lambda rows: _wide_conv(rows, call.kernel, call.kernel_map, call.num_out)
    return jax.vmap(convolve, in_axes=1, out_axes=1)(inputs)


def _wide_conv(rows, kernel, kernel_map, num_out):
    """A sparse convolution that adds in float64, as no executor of `sparse_conv`."""
    kernel_map = match_rows(kernel_map, num_in=len(rows), num_out=num_out)
    overflow = kernel_map.blocks_needed > kernel_map.capacity
    padded = jnp.where(overflow, jnp.nan, jnp.pad(rows, ((0, 1), (0, 0))))

    def block(total, entry):
        senders, receivers, offset = entry
        messages = jnp.matmul(
            padded[senders], kernel[offset], precision=jax.lax.Precision.HIGHEST
        )
        added = jraph.segment_sum(messages, receivers, num_segments=num_out)
        return total + added, None

    start = jnp.zeros((num_out, kernel.shape[-1]), kernel.dtype)
    blocks = kernel_map.senders, kernel_map.receivers, kernel_map.offset
    return jax.lax.scan(block, start, blocks)[0]


def _normalise(call: NormCall) -> Array:
    if call.scale.dtype != jnp.float64:
        return call.run()
    factor = call.scale * jax.lax.rsqrt(call.var + call.epsilon)
    outputs = (call.inputs - call.mean[None, None]) * factor[None, None]
    real = call.mask[:, None, None]
    return jnp.where(real, outputs + call.bias[None, None], 0)
