"""Spike-driven inference: every linear layer is fed zeros and ones alone.

The networks train with integer spikes 0..D. Here an integer spike n of a time step is n
binary spikes among its D binary steps (`spike.unroll_spikes`), and a layer adds up what
each of its T x D binary steps sends (`binary_steps`). Hardware needs additions of
weights for that, and no products. JAX itself multiplies the zeros and ones in matrix
products; `event_executor` runs the same layers by additions alone, and `operations`
counts those. The layers with real-valued input are the first convolution and the head
(`real_layers` lists those of a network). The strided convolutions between the stages
have a neuron before them, so that the downsampling takes spikes in every network; the
head of the classifier does with `head_on_spikes` (`spike_readout`).

The functions work on layers, so that every network made of `SparseConv` and Dense
layers runs with `run_binary`, with the variables that it has. In float64 (variables
and features of that type, from `in_float64`, under `jax.enable_x64`) the sums are
float64 throughout.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3dsnn_jax.binary_steps import add_binary_steps, linear_step, wide_conv
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.layer_calls import (
    LayerCall,
    NormCall,
    replace_layers,
    spike_levels_of,
)
from e3dsnn_jax.layers import Compute, fold_norm
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.spike_readout import classifier_on_spikes, readout_units
from e3dsnn_jax.training.metrics import SPIKES_SUFFIX, spike_level

Run = tuple[Float[Array, "clouds classes"], dict[str, Array]]
"""Logits and activations of a classifier on one batch."""


def run_binary(
    model: nn.Module,
    variables: dict[str, Any],
    *arguments: Any,
    neuron: Neuron | None = None,
    head_on_spikes: bool = False,
    **options: Any,
) -> Any:
    """Inference with binary spikes; otherwise `model.apply` with the same arguments.

    Args:
      model: Any network without rematerialisation, in inference.
      variables: Its variables, float32 or float64. `Compute.precision` is not looked
        at, in layers with real inputs neither: sums have the type of the variables.
      *arguments: What the network is called with.
      neuron: Its neurons, whose levels are the binary steps of a time step; the field
        `neuron` of the network if omitted.
      head_on_spikes: Compute a classifier's logits from spikes as well, so that the
        first convolution alone takes real values. The logits are the same but for
        rounding; `"pooled"`, which that head does not read, is left out.
      **options: Further arguments of the call.

    Returns:
      What the network returns.

    Raises:
      ValueError: If the network has no spikes, has others than `neuron` sends, is asked
        to train, or has no head that could be moved onto spikes.
    """
    given = getattr(model, "neuron", None) if neuron is None else neuron
    if given is not None and given.relu:
        raise ValueError(
            "a network with ReLU has no spikes: it cannot run on binary ones"
        )
    binary_steps = spike_levels_of(model, None if given is None else given.levels)
    if head_on_spikes:
        readout_units(model)  # raises where there are none
    fed: list[str] = []

    def layer(call: LayerCall) -> Array:
        if not call.takes_spikes:
            return _run_integer(call)
        fed.append(call.name)
        step = linear_step(call)
        outputs = add_binary_steps(call.inputs, step, levels=binary_steps)
        return outputs if call.bias is None else outputs + call.bias[None, None]

    results = replace_layers(
        _in_full_precision(model),
        variables,
        *arguments,
        layer=layer,
        norm=_normalise,
        **options,
    )
    if not fed:
        raise ValueError(
            f"no layer of {type(model).__name__} takes spikes, so nothing was unrolled"
        )
    if not (head_on_spikes and isinstance(model, Classifier)):
        return results
    activations = {name: a for name, a in results[1].items() if name != "pooled"}
    levels = options["levels"] if "levels" in options else arguments[1]
    logits = classifier_on_spikes(
        model, variables, activations, levels, num_clouds=options["num_clouds"]
    )
    return logits, activations


def run_integer(
    model: nn.Module, variables: dict[str, Any], *arguments: Any, **options: Any
) -> Any:
    """Inference with integer spikes, in the type of the variables.

    In float32 this is `model.apply` with `Compute.precision` float32; the network's own
    layers add in float32 always, so it is this function that computes in float64.
    """
    return replace_layers(
        _in_full_precision(model),
        variables,
        *arguments,
        layer=_run_integer,
        norm=_normalise,
        **options,
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


def in_float64(tree: Any) -> Any:
    """The same arrays on the host, those of float32 as float64."""
    widen = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf
    return jax.tree.map(lambda leaf: widen(np.asarray(leaf)), tree)


class Flips(NamedTuple):
    """How two runs of one classifier on one batch differ; padding is left out."""

    spikes: dict[str, int]
    """By layer: neurons and time steps whose spikes differ."""
    neurons: dict[str, int]
    """By layer: neurons and time steps that were compared."""
    sent: dict[str, int]
    """By layer: binary spikes of the first run."""
    predictions: int
    """Clouds whose most probable class differs."""


def compare_runs(one: Run, other: Run, levels: tuple[Level, ...]) -> Flips:
    """Counts the spikes and predictions that differ between two runs.

    Args:
      one: Logits and activations of a run.
      other: Those of another run on the same batch.
      levels: The batch's levels, which tell voxels from padding rows.
    """
    real = [np.asarray(level.coords)[:, 0] >= 0 for level in levels]
    flipped, neurons, sent = {}, {}, {}
    for name in (key for key in one[1] if key.endswith(SPIKES_SUFFIX)):
        rows = real[spike_level(name.removesuffix(SPIKES_SUFFIX))]
        ours, theirs = (np.asarray(run[1][name])[rows] for run in (one, other))
        flipped[name] = int(np.count_nonzero(ours != theirs))
        neurons[name] = ours.size
        sent[name] = int(ours.sum(dtype=np.float64))
    # A cloud without voxels, as of padding, has the head's bias in both.
    classes = [np.asarray(logits).argmax(-1) for logits, _ in (one, other)]
    changed = int(np.count_nonzero(classes[0] != classes[1]))
    return Flips(flipped, neurons, sent, changed)


def _in_full_precision(model: nn.Module) -> nn.Module:
    """The same network with no layer in bfloat16, if its field `compute` says so."""
    compute = getattr(model, "compute", None)
    if not isinstance(compute, Compute) or compute.precision == "float32":
        return model
    return model.clone(compute=compute._replace(precision="float32"))


def _run_integer(call: LayerCall) -> Array:
    if call.kernel_map is None or call.kernel.dtype != jnp.float64:
        return call.run()
    kernel, kernel_map = call.kernel, call.kernel_map
    convolve = lambda rows: wide_conv(rows, kernel, kernel_map, num_out=call.num_out)
    return jax.vmap(convolve, in_axes=1, out_axes=1)(call.inputs.astype(jnp.float64))


def _normalise(call: NormCall) -> Array:
    if call.scale.dtype != jnp.float64:
        return call.run()
    factor, _ = fold_norm(call.scale, call.bias, call.mean, call.var, call.epsilon)
    outputs = (call.inputs - call.mean[None, None]) * factor[None, None]
    real = call.mask[:, None, None]
    return jnp.where(real, outputs + call.bias[None, None], 0)
