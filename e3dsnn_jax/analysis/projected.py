r"""A network whose units keep few directions of what they put out, without retraining.

A unit is linear from its spikes to its membrane, convolution and BatchNorm together, so
that a projection of the membrane moves into its weights. With :math:`P` the directions,
:math:`B` the way back, :math:`m` the mean, BatchNorm as :math:`y = f z + b`:

.. math::
    m + (y - m) P^T B^T = (s * W f P^T)\, B^T + m + (b - m) P^T B^T

The first factor is a convolution of spikes to k instead of c_out channels, additions as
before; the second multiplies k real values by c_out weights at every voxel.

Source: SVCCA (NIPS 2017), sections 4.2 (intrinsic dimension) and 4.4 (compression).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3dsnn_jax.layer_calls import layer_name
from e3dsnn_jax.layers import MaskedBatchNorm, Unit, fold_norm
from e3dsnn_jax.parameter_names import flatten_variables
from e3dsnn_jax.sparse_conv import sparse_conv
from svcca_jax.projection import Projector


class Replacement(NamedTuple):
    """What a unit's membrane y becomes: `mean + (y - mean) @ matrix`."""

    matrix: Float[Array, "channels channels"]
    mean: Float[Array, " channels"]


class SmallUnit(NamedTuple):
    """A unit as two smaller products."""

    first: Float[Array, "offsets c_in directions"]
    """Kernel of the spikes."""
    second: Float[Array, "directions c_out"]
    """Applied at every voxel."""
    bias: Float[Array, " c_out"]

    @property
    def weights(self) -> int:
        """Numbers that have to be stored, the bias left out."""
        return self.first.size + self.second.size


def identity(channels: int) -> Replacement:
    """The replacement that changes nothing."""
    return Replacement(jnp.eye(channels), jnp.zeros(channels))


def replacement_of(projector: Projector) -> Replacement:
    """The map of a membrane to its projection."""
    matrix = jnp.matmul(
        projector.directions.T, projector.back.T, precision=jax.lax.Precision.HIGHEST
    )
    return Replacement(matrix, projector.mean)


def run_projected(
    model: nn.Module,
    variables: dict[str, Any],
    *arguments: Any,
    replacements: dict[str, Replacement],
    **options: Any,
) -> Any:
    """Inference with the membranes of some units projected.

    Args:
      model: A network of `Unit`s.
      variables: Its variables.
      *arguments: What it is called with.
      replacements: For units by their names; all others stay as they are. Arrays, so
        that one compiled program serves every projection.
      **options: Further arguments of the call.

    Returns:
      What the network returns.

    Raises:
      ValueError: If a name is that of no unit.
    """

    def run(name: str, call: Any, unit: Unit, *arguments: Any, **options: Any) -> Any:
        del unit
        outputs, activations = call(*arguments, **options)
        mask = arguments[2]
        matrix, mean = replacements[name]
        centered = outputs - mean[None, None]
        product = jnp.matmul(centered, matrix, precision=jax.lax.Precision.HIGHEST)
        projected = mean[None, None] + product
        return jnp.where(mask[:, None, None], projected, 0), activations

    return _with_units(model, variables, arguments, options, set(replacements), run)


def run_small(
    model: nn.Module,
    variables: dict[str, Any],
    *arguments: Any,
    units: dict[str, SmallUnit],
    **options: Any,
) -> Any:
    """Inference with some units replaced by smaller ones; see `run_projected`."""

    def run(name: str, call: Any, unit: Unit, *arguments: Any, **options: Any) -> Any:
        del call, options
        membrane, kernel_map, mask = arguments
        first, second, bias = units[name]
        spikes = membrane if unit.neuron is None else unit.neuron(membrane)
        few = sparse_conv(spikes, first, kernel_map, num_out=mask.shape[0])
        many = jnp.matmul(few, second, precision=jax.lax.Precision.HIGHEST)
        outputs = jnp.where(mask[:, None, None], many + bias[None, None], 0)
        return outputs, ({} if unit.neuron is None else {"spikes": spikes})

    return _with_units(model, variables, arguments, options, set(units), run)


def shrink_unit(
    kernel: Float[Array, "offsets c_in c_out"],
    scale: Float[Array, " c_out"],
    shift: Float[Array, " c_out"],
    projector: Projector,
) -> SmallUnit:
    """The two factors of a unit whose membrane is projected.

    Args:
      kernel: Of its convolution.
      scale: BatchNorm's factor, `scale / sqrt(var + epsilon)`.
      shift: BatchNorm's shift, `bias - mean * factor`.
      projector: Of its membrane.
    """
    directions, back, mean = projector
    product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    kept = product(product(shift - mean, directions.T), back.T)
    first = product(kernel * scale[None, None], directions.T)
    return SmallUnit(first, back.T, mean + kept)


def shrink_units(
    variables: dict[str, Any], projectors: dict[str, Projector]
) -> dict[str, SmallUnit]:
    """The factors of units by their names, from the variables of the network.

    Raises:
      ValueError: If a name is that of no unit.
    """
    params = flatten_variables(variables["params"])
    stats = flatten_variables(variables["batch_stats"])
    paths = {
        layer_name(tuple(path.split("/")[:-1])): path.removesuffix("/conv/kernel")
        for path in params
        if path.endswith("/conv/kernel")
    }
    small = {}
    for name, projector in projectors.items():
        if name not in paths:
            raise ValueError(f"the variables have no unit {name}")
        path = paths[name]
        scale, shift = fold_norm(
            jnp.asarray(params[f"{path}/norm/scale"]),
            jnp.asarray(params[f"{path}/norm/bias"]),
            jnp.asarray(stats[f"{path}/norm/mean"]),
            jnp.asarray(stats[f"{path}/norm/var"]),
            MaskedBatchNorm.epsilon,
        )
        kernel = jnp.asarray(params[f"{path}/conv/kernel"])
        small[name] = shrink_unit(kernel, scale, shift, projector)
    return small


def _with_units(
    model: nn.Module,
    variables: dict[str, Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    names: set[str],
    run: Any,
) -> Any:
    left = set(names)

    def intercept(next_call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, Unit):
            return next_call(*args, **kwargs)
        name = layer_name(module.path)
        if name not in names:
            return next_call(*args, **kwargs)
        left.discard(name)
        return run(name, next_call, module, *args, **kwargs)

    with nn.intercept_methods(intercept):
        outputs = model.apply(variables, *arguments, **options)
    if left:
        missing = ", ".join(sorted(left))
        raise ValueError(f"{type(model).__name__} has no units of the names {missing}")
    return outputs
