"""Watching, and replacing, what the linear layers of any network do.

A network stays as it is written: while it runs under `replace_layers`, every sparse
convolution and every linear layer of it is handed to a function, which returns the
layer's output. Spike-driven inference and the account of operations are two such
functions, so they hold for every Linen network made of these layers.

A `SparseConv` with `integer_inputs` takes spikes, and so does `SpikeDense`; all others
have real-valued inputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.layers import (
    Initializer,
    MaskedBatchNorm,
    SparseConv,
    submanifold_init,
)
from e3dsnn_jax.spike import Neuron


class SpikeDense(nn.Module):
    """A linear layer, with bias, whose inputs are spikes; parameters as `nn.Dense`."""

    channels: int
    kernel_init: Initializer = submanifold_init

    @nn.compact
    def __call__(
        self, spikes: Float[Array, "voxels time c_in"]
    ) -> Float[Array, "voxels time channels"]:
        """Multiplies every voxel and time step by one matrix."""
        shape = (spikes.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        product = jnp.matmul(spikes, kernel, precision=jax.lax.Precision.HIGHEST)
        return product + bias[None, None]


class LayerCall(NamedTuple):
    """One call of a layer that owns a kernel."""

    name: str
    """As activations are named: `stage0/down`, `head`."""
    inputs: Float[Array, "*rows c_in"]
    kernel: Float[Array, "*offsets c_in c_out"]
    bias: Float[Array, " c_out"] | None
    kernel_map: KernelMap | None
    """The pairs of a convolution; None for a linear layer."""
    num_out: int
    """Row capacity of the output; of a linear layer, the rows of its input."""
    takes_spikes: bool
    """Whether the inputs are spikes, and not real values."""
    run: Callable[[], Array]
    """What the network itself would do."""


class NormCall(NamedTuple):
    """One call of a BatchNorm in inference."""

    name: str
    """Path of the module: `stage0/down/norm`."""
    inputs: Float[Array, "voxels time channels"]
    mask: Bool[Array, " voxels"]
    scale: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    mean: Float[Array, " channels"]
    var: Float[Array, " channels"]
    epsilon: float
    run: Callable[[], Array]
    """What the network itself would do."""


def replace_layers(
    model: nn.Module,
    variables: dict[str, Any],
    *arguments: Any,
    layer: Callable[[LayerCall], Array],
    norm: Callable[[NormCall], Array] | None = None,
    **options: Any,
) -> Any:
    """Applies a network, with its linear layers computed by a function.

    Args:
      model: Any Linen network without rematerialisation.
      variables: Its variables.
      *arguments: What it is called with.
      layer: Returns the output of a layer; `call.run()` is the network's own.
      norm: The same for BatchNorm; the network's own if omitted.
      **options: Further arguments of the call.

    Returns:
      What the network returns.

    Raises:
      ValueError: If BatchNorm is asked to train, or the network rematerialises.
    """
    compute = getattr(model, "compute", None)
    if compute is not None and compute.rematerialise:
        raise ValueError(
            "layers cannot be watched inside of rematerialised blocks: clone the model "
            "with rematerialise=False, which changes nothing in inference"
        )

    def intercept(next_call, args, kwargs, context):
        module = context.module
        run = lambda: next_call(*args, **kwargs)
        if context.method_name != "__call__" or module.is_initializing():
            return run()
        if isinstance(module, SparseConv):
            return layer(_convolution(module, run, *args, **kwargs))
        if isinstance(module, nn.Dense | SpikeDense):
            return layer(_linear(module, run, *args, **kwargs))
        if isinstance(module, MaskedBatchNorm) and norm is not None:
            return norm(_normalisation(module, run, *args, **kwargs))
        return run()

    with nn.intercept_methods(intercept):
        return model.apply(variables, *arguments, **options)


def spike_levels_of(model: nn.Module, given: int | None = None) -> int:
    """Binary steps of a time step (D) of a network.

    Args:
      model: The network; its field `neuron` tells, if it has one.
      given: What the caller says; needed of a network without that field alone.

    Raises:
      ValueError: If nobody tells, or the two differ.
    """
    neuron = getattr(model, "neuron", None)
    own = neuron.levels if isinstance(neuron, Neuron) else given
    if own is None:
        raise ValueError(
            f"{type(model).__name__} has no field `neuron` that tells its levels: give "
            "the largest spike of a time step"
        )
    if given not in (None, own):
        raise ValueError(
            f"levels={given} are given, but the neurons of {type(model).__name__} send "
            f"up to {own} spikes a time step: leave the levels out"
        )
    return own


def layer_name(path: tuple[str, ...]) -> str:
    """The name of a unit or layer, from the path of its module."""
    words = [word for word in path[:1] if word != "backbone"] + list(path[1:])
    if len(words) > 1 and words[-1] == "conv":
        words = words[:-1]
    return "/".join(words)


def _parameter(module: nn.Module, name: str, collection: str = "params") -> Any:
    return module.get_variable(collection, name)


def _convolution(
    module: SparseConv, run: Callable[[], Array], inputs, kernel_map, *, num_out
) -> LayerCall:
    return LayerCall(
        layer_name(module.path),
        inputs,
        _parameter(module, "kernel"),
        None,
        kernel_map,
        num_out,
        module.integer_inputs,
        run,
    )


def _linear(
    module: nn.Dense | SpikeDense, run: Callable[[], Array], inputs
) -> LayerCall:
    has_bias = isinstance(module, SpikeDense) or module.use_bias
    return LayerCall(
        layer_name(module.path),
        inputs,
        _parameter(module, "kernel"),
        _parameter(module, "bias") if has_bias else None,
        None,
        inputs.shape[0],
        isinstance(module, SpikeDense),
        run,
    )


def _normalisation(
    module: MaskedBatchNorm, run: Callable[[], Array], inputs, mask, *, train
) -> NormCall:
    if train:
        raise ValueError("layers are replaced in inference: call with train=False")
    return NormCall(
        layer_name(module.path),
        inputs,
        mask,
        _parameter(module, "scale"),
        _parameter(module, "bias"),
        _parameter(module, "mean", "batch_stats"),
        _parameter(module, "var", "batch_stats"),
        module.epsilon,
        run,
    )
