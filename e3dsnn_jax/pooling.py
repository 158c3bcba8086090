"""Pooling over voxels: along a kernel map, and over whole clouds."""

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Bool, Float, Int

from e3dsnn_jax.kernel_map import HostOrDevice, KernelMap, match_rows


def _messages(
    inputs: Array, kernel_map: KernelMap, num_out: int
) -> tuple[Array, Array]:
    kernel_map = match_rows(kernel_map, num_in=inputs.shape[0], num_out=num_out)
    overflow = kernel_map.blocks_needed > kernel_map.capacity
    poisoned = jnp.where(overflow, jnp.nan, inputs)  # never pool a truncated map
    rows = jnp.concatenate([poisoned, jnp.zeros_like(inputs[:1])])
    senders, receivers = map(jnp.ravel, (kernel_map.senders, kernel_map.receivers))
    return rows[senders], receivers


def sparse_max_pool(
    inputs: Float[Array, " voxels_in *channels"], kernel_map: KernelMap, *, num_out: int
) -> Float[Array, " {num_out} *channels"]:
    """Largest input among the active voxels that meet each output; 0 where none.

    Source: `SparseMaxPool3d` of the published stack (sites without a voxel take no
    part, unlike zeros in a dense pooling).
    """
    messages, receivers = _messages(inputs, kernel_map, num_out)
    largest = jraph.segment_max(messages, receivers, num_segments=num_out)
    return jnp.where(jnp.isneginf(largest), 0, largest)


def sparse_mean_pool(
    inputs: Float[Array, " voxels_in *channels"], kernel_map: KernelMap, *, num_out: int
) -> Float[Array, " {num_out} *channels"]:
    """Mean input over the active voxels that meet each output; 0 where none.

    Source: `SparseAvgPool3d` of the published stack.
    """
    messages, receivers = _messages(inputs, kernel_map, num_out)
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
    clouds = jnp.arange(num_clouds, dtype=jnp.int32)[:, None]
    members = (jnp.asarray(coords)[None, :, 0] == clouds).astype(inputs.dtype)
    # A product, not a segment-sum: a GPU adds those in any order.
    real = jnp.where(mask[:, None], inputs, 0)
    total = jnp.matmul(members, real, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(members.sum(1), 1)[:, None]
