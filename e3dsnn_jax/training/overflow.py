"""What a batch needed of its static shapes, and the error when that was too much.

Overflow cannot raise inside a compiled step, so the numbers travel with its outputs.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from e3dsnn_jax.capacity import CapacityError
from e3dsnn_jax.pyramid import Level


def capacity_needed(levels: tuple[Level, ...]) -> Int32[Array, "levels 3"]:
    """What one device's batch needs: voxels, submanifold blocks, down blocks.

    The last level has no map down and needs 0 blocks of it.
    """
    rows = []
    for level in levels:
        down = 0 if level.down is None else level.down.blocks_needed
        needs = (level.voxels_needed, level.submanifold.blocks_needed, down)
        rows.append(jnp.stack([jnp.asarray(need, jnp.int32) for need in needs]))
    return jnp.stack(rows)


def check_overflow(
    needed: Int[Array | np.ndarray, "devices levels 3"], levels: tuple[Level, ...]
) -> None:
    """Raises if a batch did not fit the shapes that the step was compiled for.

    What the step computed from such a batch, parameters included, is NaN and must be
    discarded. Reading `needed` waits for the step: check it when the metrics are read.

    Args:
      needed: `needed` of the step's outputs.
      levels: Levels of the batch that the step was given; only their shapes are read.

    Raises:
      CapacityError: With device, level, both numbers and what to do.
      ValueError: If the two disagree on the number of levels.
    """
    values = np.asarray(needed)
    if values.shape[1] != len(levels):
        raise ValueError(
            f"the step reports {values.shape[1]} levels, the batch has {len(levels)}"
        )
    held = np.array(
        [
            (
                level.coords.shape[-2],
                level.submanifold.capacity,
                0 if level.down is None else level.down.capacity,
            )
            for level in levels
        ]
    )
    units = ("voxels", "blocks of the submanifold map", "blocks of the map down")
    problems = [
        f"device {device}, level {level}: {values[device, level, kind]} {units[kind]} "
        f"needed, {held[level, kind]} held"
        for device, level, kind in np.argwhere(values > held)
    ]
    if problems:
        raise CapacityError(
            f"the batch does not fit its static shapes: {'; '.join(problems)}. Raise "
            "these capacities to the numbers needed, or put fewer clouds on a device, "
            "and go back to the last checkpoint"
        )
