"""The quantities of a segmentation fixture, computed by our code."""

from collections.abc import Mapping

import numpy as np

from e3dsnn_jax.interop import import_state
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.published import State
from e3dsnn_jax.segmenter import Segmenter
from experiments.reference.voxel_network import Stage, compute_network, make_batch

# The published network makes its grid just as long as the largest coordinate needs, so
# that the last layer of voxels is dropped on the way down where an extent is odd.
_MARGIN = 1


def compute_segmenter(
    fixture: Mapping[str, np.ndarray], state: State, *, source: str
) -> dict[str, np.ndarray]:
    """Returns every quantity of a segmentation fixture, under the fixture's names.

    Args:
      fixture: The arrays of the fixture; only `input/*` and `cotangent` are read, so
        that nothing of its results can find its way into ours.
      state: Weights by published names.
      source: What errors of the import call the weights.

    Raises:
      ValueError: If the weights are not those of a segmentation network.
    """
    variables, _ = import_state(state, source=source)
    architecture, num_classes = architecture_of(variables)
    batch = make_batch(fixture, num_levels=architecture.num_levels, margin=_MARGIN)
    model = Segmenter(architecture, num_classes)
    stages = [Stage("stem", "stem", 0)]
    for index in range(len(architecture.stage_channels)):
        stages.append(Stage(f"enc{index}", f"stage{index}", index + 1))
        stages.append(Stage(f"dec{index}", f"decoder/stage{index}", index))
    # Rows of the outputs follow the rows of the inputs, not our sorted voxels.
    rows = np.argsort(batch.order)
    return compute_network(
        model, variables, batch, fixture["cotangent"], stages, rows=rows
    )
