"""The layers of a network, read off the network itself: nothing is computed.

A convolution is told apart by the map that it runs along, and a linear layer by its
number of rows, so that the voxels of inputs and outputs are known without a name for
every layer of every network.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from e3dsnn_jax.layer_calls import LayerCall, NormCall, layer_name, replace_layers
from e3dsnn_jax.parameter_names import flatten_variables
from e3dsnn_jax.pyramid import Level


class Places(NamedTuple):
    """What tells where a layer works."""

    maps: dict[int, tuple[int, int]]
    """Levels of inputs and outputs of each map, by the identity of its senders."""
    rows: tuple[int, ...]
    """Row capacity of each level."""
    clouds: int | None
    """Rows of what is pooled over whole clouds; None if the network is not told."""


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
    same_input_as: str | None = None
    """An earlier layer that receives the very same spikes or values."""


def describe_layers(
    model: nn.Module,
    variables: dict[str, Any],
    features: Float[np.ndarray | Array, "voxels channels"],
    levels: tuple[Level, ...],
    *arguments: Any,
    **options: Any,
) -> tuple[LayerShape, ...]:
    """The layers of a network in the order in which it calls them; computes nothing.

    Args:
      model: The network, called with features and levels.
      variables: Its variables.
      features: Features of a batch.
      levels: Its levels.
      *arguments: What the network is called with behind these.
      **options: Further arguments of the call.

    Raises:
      ValueError: If the variables are those of another network, a convolution runs
        along a map that is none of the levels', a linear layer's rows are those of no
        level or of several, or a layer is called twice.
    """
    found: list[LayerShape] = []
    readers: dict[int, tuple[Any, str]] = {}
    parameters = _parameters_by_layer(variables)

    def watch(variables, features, levels, *arguments):
        places = map_places(levels, options.get("num_clouds"))

        def layer(call: LayerCall) -> Array:
            check_called_once(call.name, [shape.name for shape in found])
            # Kept beside its name: an identity is that of a living object.
            _, first = readers.setdefault(id(call.inputs), (call.inputs, call.name))
            shape = _shape_of(call, places, parameters.pop(call.name, 0))
            same = None if first == call.name else first
            found.append(shape._replace(same_input_as=same))
            return call.run()

        def norm(call: NormCall) -> Array:
            own = parameters.pop(call.name, 0)
            found[-1] = found[-1]._replace(parameters=found[-1].parameters + own)
            return call.run()

        inputs = features, levels, *arguments
        return replace_layers(
            model, variables, *inputs, layer=layer, norm=norm, **options
        )

    inputs = features, levels, *arguments
    _check_variables(model, variables, inputs, options)
    jax.eval_shape(watch, variables, *inputs)
    if parameters:
        raise ValueError(
            f"no layer is known that owns the parameters {', '.join(parameters)}: the "
            "account covers SparseConv, BatchNorm and Dense"
        )
    return tuple(found)


def check_called_once(name: str, before: Iterable[str]) -> None:
    """Refuses a layer that was called before in the same pass.

    Raises:
      ValueError: If it was.
    """
    if name in before:
        raise ValueError(
            f"{name} is called twice in one pass, and layers are counted by their "
            "names: give each call a module of its own"
        )


def map_places(levels: tuple[Level, ...], clouds: int | None) -> Places:
    """Where the maps of these very levels lead, and their inverse maps.

    Args:
      levels: Levels of a batch.
      clouds: Clouds of the batch, padding clouds included; None if unknown.
    """
    maps: dict[int, tuple[int, int]] = {}
    for index, level in enumerate(levels):
        maps[id(level.submanifold.senders)] = index, index
        if level.down is not None:
            maps[id(level.down.senders)] = index, index + 1
            # Of the inverse map, which swaps the two.
            maps[id(level.down.receivers)] = index + 1, index
    return Places(maps, tuple(level.coords.shape[0] for level in levels), clouds)


def place_of(call: LayerCall, places: Places) -> tuple[int | None, int | None]:
    """Levels of a layer's inputs and outputs; None for a layer on whole clouds.

    Raises:
      ValueError: If a convolution runs along a map that is none of the levels', or the
        rows of a linear layer are those of no level or of several.
    """
    if call.kernel_map is None:
        return _place_of_rows(call, places)
    place = places.maps.get(id(call.kernel_map.senders))
    if place is None:
        raise ValueError(
            f"{call.name}: its kernel map is none of the levels' maps, so that its "
            "voxels cannot be counted; put the map into the levels"
        )
    return place


def _place_of_rows(call: LayerCall, places: Places) -> tuple[int | None, int | None]:
    rows = call.inputs.shape[0]
    fitting = [n for n, capacity in enumerate(places.rows) if capacity == rows]
    # What is pooled over clouds has no time axis, and what voxels hold has one.
    if rows == places.clouds and (call.inputs.ndim == 2 or not fitting):
        return None, None
    if len(fitting) == 1:
        return fitting[0], fitting[0]
    found = " and ".join(f"level {n}" for n in fitting) or "no level and not the clouds"
    raise ValueError(
        f"{call.name}: {found} have its {rows} rows (the levels have "
        f"{', '.join(map(str, places.rows))}, the clouds {places.clouds}), so that its "
        "silent voxels cannot be told from padding; give the levels capacities that "
        "differ, and num_clouds to the network"
    )


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


def _check_variables(model, variables, inputs, options) -> None:
    expected: Any = jax.eval_shape(
        lambda *inputs: model.init(jax.random.key(0), *inputs, **options), *inputs
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
