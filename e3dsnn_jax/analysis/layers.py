"""The layers of a network whose activations are compared, and where their voxels lie.

* **membranes**: what every unit and every block puts out, before the next neuron fires.
* **spikes**: what every neuron sends into the unit that bears its name; in a network
  with ReLU its rectified membranes.

Names are those of the activations that the network returns.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from e3dsnn_jax.analysis.options import Values
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.layer_shapes import LayerShape, describe_layers

_SPIKES = "/spikes"


class LayerPlace(NamedTuple):
    """A layer that is compared."""

    name: str
    """As the network names the activation."""
    level: int | None
    """Level of its voxels; None if its rows are clouds."""
    neurons: int
    """Its channels."""


def find_layers(
    model: nn.Module, variables: dict[str, Any], batch: ShapeBatch, values: Values
) -> tuple[LayerPlace, ...]:
    """The layers of a network from the input up; nothing is computed.

    Args:
      model: A network that returns logits and activations by name.
      variables: Its variables.
      batch: Any batch of one device.
      values: Which activations; of clouds (`pooled`, `logits`) both have the same.

    Raises:
      ValueError: If the network has no such layer, or its variables are those of
        another network.
    """
    options: dict[str, Any] = {"num_clouds": batch.labels.shape[0], "train": False}
    inputs = batch.features, batch.levels
    shapes = describe_layers(model, variables, *inputs, **options)
    places: list[LayerPlace] = []

    def watch(variables, features, levels):
        outputs: Any = model.apply(variables, features, levels, **options)
        logits, activations = outputs
        seen: set[int] = set()
        for name, value in activations.items():
            # A stage puts out what its last block does: the same array twice.
            if name.endswith(_SPIKES) != (values == "spikes") or id(value) in seen:
                continue
            if value.ndim == 3:
                seen.add(id(value))
                level = _level_of(name, shapes)
                places.append(LayerPlace(name, level, value.shape[-1]))
        pooled = activations.get("pooled")
        if pooled is not None:
            places.append(LayerPlace("pooled", None, pooled.shape[-1]))
        # Scores of clouds, or of every voxel.
        level = None if pooled is not None else _level_of("head", shapes)
        places.append(LayerPlace("logits", level, logits.shape[-1]))
        return logits

    jax.eval_shape(watch, variables, *inputs)
    if all(place.level is None for place in places):
        raise ValueError(f"{type(model).__name__} returned no {values} on voxels")
    return tuple(places)


def _level_of(name: str, shapes: tuple[LayerShape, ...]) -> int:
    """Level of spikes: of the unit's inputs; of a membrane: of its layers' outputs."""
    if name.endswith(_SPIKES):
        unit = name.removesuffix(_SPIKES)
        found = [shape.level_in for shape in shapes if shape.name == unit]
    else:
        found = [
            shape.level_out
            for shape in shapes
            if shape.name == name or shape.name.startswith(f"{name}/")
        ]
    if not found or found[-1] is None:
        raise ValueError(
            f"the activation {name!r} belongs to no sparse convolution, so that its "
            "voxels are not known"
        )
    return found[-1]
