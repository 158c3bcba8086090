"""The quantities of a classifier fixture, computed by our code."""

from collections.abc import Mapping

import numpy as np

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.interop import import_state
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.published import State
from experiments.reference.voxel_network import Stage, compute_network, make_batch

# The published classifier makes its grid this much longer than the largest
# coordinate, so that no voxel is dropped on the way down.
_MARGIN = 96


def compute_classifier(
    fixture: Mapping[str, np.ndarray], state: State, *, source: str
) -> dict[str, np.ndarray]:
    """Returns every quantity of a classifier fixture, under the fixture's names.

    Args:
      fixture: The arrays of the fixture; only `input/*` and `cotangent` are read, so
        that nothing of its results can find its way into ours.
      state: Weights by published names.
      source: What errors of the import call the weights.

    Raises:
      ValueError: If the weights are not those of a classifier.
    """
    variables, _ = import_state(state, source=source)
    architecture, num_classes = architecture_of(variables)
    batch = make_batch(fixture, num_levels=architecture.num_levels, margin=_MARGIN)
    model = Classifier(architecture, num_classes)
    stages = [
        Stage(f"enc{index}", f"stage{index}", index + 1)
        for index in range(len(architecture.stage_channels))
    ]
    stages.insert(0, Stage("stem", "stem", 0))
    return compute_network(model, variables, batch, fixture["cotangent"], stages)
