"""The layers of a network, read off the network itself: nothing is computed.

A convolution is told apart by the map that it runs along, so that the voxels of its
inputs and outputs are known without a name for every layer of every network.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from e3dsnn_jax.layer_calls import LayerCall, NormCall, layer_name, replace_layers
from e3dsnn_jax.parameter_names import flatten_variables
from e3dsnn_jax.pyramid import Level

Places = dict[int, tuple[int, int]]
"""Levels of inputs and outputs of each map, by the identity of its senders."""


class LayerShape(NamedTuple):
    """What is known of a layer before it runs."""

    name: str
    """As activations are named: `stage0/down`, `head`."""
    takes_spikes: bool
    """Whether its inputs are spikes; if not, it multiplies."""
    offsets: int
    """Kernel offsets; 1 for a linear layer."""
    c_in: int
    c_out: int
    time_steps: int
    """Time steps of its input; 1 where every step would receive the same."""
    level_in: int | None
    """Level of the input voxels; None for a layer on whole clouds."""
    level_out: int | None
    """Level of the output voxels."""
    parameters: int
    """Weights and biases, those of the BatchNorm behind it included."""


def describe_layers(
    model: nn.Module,
    variables: dict[str, Any],
    features: Float[np.ndarray | Array, "voxels channels"],
    levels: tuple[Level, ...],
    **options: Any,
) -> tuple[LayerShape, ...]:
    """The layers of a network in the order in which it calls them; computes nothing.

    Args:
      model: The network, called with features and levels.
      variables: Its variables.
      features: Features of a batch.
      levels: Its levels.
      **options: Further arguments of the call.

    Raises:
      ValueError: If the variables are those of another network, or a convolution runs
        along a map that is none of the levels'.
    """
    found: list[LayerShape] = []
    parameters = _parameters_by_layer(variables)

    def watch(variables, features, levels):
        places = map_places(levels)

        def layer(call: LayerCall) -> Array:
            found.append(_shape_of(call, places, parameters.pop(call.name, 0)))
            return call.run()

        def norm(call: NormCall) -> Array:
            own = parameters.pop(call.name, 0)
            found[-1] = found[-1]._replace(parameters=found[-1].parameters + own)
            return call.run()

        arguments = model, variables, features, levels
        return replace_layers(*arguments, layer=layer, norm=norm, **options)

    _check_variables(model, variables, features, levels, options)
    jax.eval_shape(watch, variables, features, levels)
    if parameters:
        raise ValueError(
            f"no layer is known that owns the parameters {', '.join(parameters)}: the "
            "account covers SparseConv, BatchNorm and Dense"
        )
    return tuple(found)


def map_places(levels: tuple[Level, ...]) -> Places:
    """Where the maps of these very levels lead, and their inverse maps."""
    places: Places = {}
    for index, level in enumerate(levels):
        places[id(level.submanifold.senders)] = index, index
        if level.down is not None:
            places[id(level.down.senders)] = index, index + 1
            # Of the inverse map, which swaps the two.
            places[id(level.down.receivers)] = index + 1, index
    return places


def place_of(call: LayerCall, places: Places) -> tuple[int | None, int | None]:
    """Levels of a layer's inputs and outputs; None for a linear layer.

    Raises:
      ValueError: If it runs along a map that is none of the levels'.
    """
    if call.kernel_map is None:
        return None, None
    place = places.get(id(call.kernel_map.senders))
    if place is None:
        raise ValueError(
            f"{call.name}: its kernel map is none of the levels' maps, so that its "
            "voxels cannot be counted; put the map into the levels"
        )
    return place


def _shape_of(call: LayerCall, places: Places, parameters: int) -> LayerShape:
    level_in, level_out = place_of(call, places)
    *offsets, c_in, c_out = call.kernel.shape
    return LayerShape(
        call.name,
        call.takes_spikes,
        offsets[0] if offsets else 1,
        c_in,
        c_out,
        call.inputs.shape[1] if call.inputs.ndim == 3 else 1,
        level_in,
        level_out,
        parameters,
    )


def _parameters_by_layer(variables: dict[str, Any]) -> dict[str, int]:
    """Number of parameters of each layer and each BatchNorm, by name."""
    sizes: dict[str, int] = {}
    for path, leaf in flatten_variables(variables["params"]).items():
        name = layer_name(tuple(path.split("/")[:-1]))
        sizes[name] = sizes.get(name, 0) + int(np.size(leaf))
    return sizes


def _check_variables(model, variables, features, levels, options) -> None:
    expected: Any = jax.eval_shape(
        lambda *inputs: model.init(jax.random.key(0), *inputs, **options),
        features,
        levels,
    )
    needed, found = (
        {name: tuple(np.shape(leaf)) for name, leaf in flatten_variables(tree).items()}
        for tree in (expected, variables)
    )
    names = sorted(needed | found, key=lambda name: name.startswith("batch_stats"))
    for name in names:
        if needed.get(name) != found.get(name):
            raise ValueError(
                f"these are the variables of another network: {name} is "
                f"{found.get(name, 'missing')}, but the network "
                f"needs {needed.get(name, 'no such array')}; was the "
                "checkpoint written by another variant?"
            )
