"""Pooling over voxels: along a kernel map, and over whole clouds."""

import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from e3dsnn_jax.kernel_map import HostOrDevice, KernelMap


def _messages(inputs: Array, kernel_map: KernelMap) -> tuple[Array, Array]:
    overflow = kernel_map.blocks_needed > kernel_map.capacity
    poisoned = jnp.where(overflow, jnp.nan, inputs)  # never pool a truncated map
    rows = jnp.concatenate([poisoned, jnp.zeros_like(inputs[:1])])
    senders = jnp.asarray(kernel_map.senders).reshape(-1)
    return rows[senders], jnp.asarray(kernel_map.receivers).reshape(-1)


def sparse_max_pool(
    inputs: Float[Array, " voxels_in *channels"], kernel_map: KernelMap, *, num_out: int
) -> Float[Array, " {num_out} *channels"]:
    """Largest input among the active voxels that meet each output; 0 where none.

    Source: `SparseMaxPool3d` of the published stack (sites without a voxel take no
    part, unlike zeros in a dense pooling).
    """
    messages, receivers = _messages(inputs, kernel_map)
    largest = jraph.segment_max(messages, receivers, num_segments=num_out)
    return jnp.where(jnp.isneginf(largest), 0, largest)


def sparse_mean_pool(
    inputs: Float[Array, " voxels_in *channels"], kernel_map: KernelMap, *, num_out: int
) -> Float[Array, " {num_out} *channels"]:
    """Mean input over the active voxels that meet each output; 0 where none.

    Source: `SparseAvgPool3d` of the published stack.
    """
    messages, receivers = _messages(inputs, kernel_map)
    total = jraph.segment_sum(messages, receivers, num_segments=num_out)
    ones = jnp.ones(receivers.shape, inputs.dtype)
    count = jraph.segment_sum(ones, receivers, num_segments=num_out)
    count = count.reshape((num_out,) + (1,) * (inputs.ndim - 1))
    return total / jnp.maximum(count, 1)


def voxel_mask(coords: Int[HostOrDevice, "voxels axes"]) -> Bool[Array, " voxels"]:
    """True on real voxels; padding rows have a batch index of -1."""
    return jnp.asarray(coords)[:, 0] >= 0


def cloud_mean(
    inputs: Float[Array, "voxels channels"],
    coords: Int[HostOrDevice, "voxels axes"],
    *,
    num_clouds: int,
) -> Float[Array, "{num_clouds} channels"]:
    """Mean over the voxels of each cloud of the batch; 0 for a cloud without voxels.

    Source: the global pooling of `SNN_3dv` in the authors' code.
    """
    mask = voxel_mask(coords)
    # Padding rows get a cloud out of range, which segment_sum drops.
    cloud = jnp.where(mask, jnp.asarray(coords)[:, 0], num_clouds)
    total = jraph.segment_sum(inputs, cloud, num_segments=num_clouds)
    count = jraph.segment_sum(mask.astype(inputs.dtype), cloud, num_segments=num_clouds)
    return total / jnp.maximum(count, 1)[:, np.newaxis]
