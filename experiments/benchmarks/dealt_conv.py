"""A convolution of one cloud on several devices, for the benchmark of `sparse_conv`.

Each device computes a run of the output voxels along the pairs that reach them. Inputs
and weights are whole on every device, and their gradients are summed over all.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from e3dsnn_jax.kernel_map import (
    KernelMap,
    Pairs,
    block_size,
    blocks_needed,
    pack_pairs,
)
from e3dsnn_jax.sparse_conv import sparse_conv
from e3dsnn_jax.training.steps import DEVICES, replicate


def deal_outputs(pairs: Pairs, rows: int, num_parts: int) -> list[tuple[range, Pairs]]:
    """Cuts the output voxels into runs that near-equal numbers of pairs reach.

    Returns:
      Each run, and its pairs with receivers counted from the start of the run.
    """
    reached = np.cumsum(np.bincount(pairs.receivers, minlength=rows))
    shares = np.arange(1, num_parts) * reached[-1] / num_parts
    cuts = [0, *np.searchsorted(reached, shares).tolist(), rows]
    offset = np.repeat(np.arange(len(pairs.counts)), pairs.counts)
    parts = []
    for run in map(range, cuts, cuts[1:]):
        mine = (pairs.receivers >= run.start) & (pairs.receivers < run.stop)
        counts = np.bincount(offset[mine], minlength=len(pairs.counts))
        receivers = pairs.receivers[mine] - run.start
        parts.append((run, Pairs(pairs.senders[mine], receivers, counts)))
    return parts


class DealtConv:
    """One submanifold convolution whose output voxels are dealt to a mesh's devices.

    Args:
      pairs: Of the whole cloud.
      spikes: Inputs.
      weights: One matrix an offset.
      cotangent: Of the outputs.
      mesh: From `make_mesh`.
    """

    def __init__(
        self,
        pairs: Pairs,
        spikes: Float[np.ndarray, "voxels c_in"],
        weights: Float[np.ndarray, "offsets c_in c_out"],
        cotangent: Float[np.ndarray, "voxels c_out"],
        mesh: Mesh,
    ):
        rows = len(spikes)
        parts = deal_outputs(pairs, rows, mesh.size)
        self.runs = [run for run, _ in parts]
        size = block_size(len(pairs.senders) // mesh.size, len(pairs.counts))
        num_out = max(map(len, self.runs))
        blocks = max(blocks_needed(part, pairs_per_block=size) for _, part in parts)
        packed = [
            pack_pairs(
                part,
                num_in=rows,
                num_out=num_out,
                pairs_per_block=size,
                blocks_capacity=blocks,
            )
            for _, part in parts
        ]
        padded = np.zeros((mesh.size, num_out, cotangent.shape[1]), np.float32)
        for device, run in enumerate(self.runs):
            padded[device, : len(run)] = cotangent[run.start : run.stop]
        split, whole = PartitionSpec(DEVICES), PartitionSpec()
        maps = jax.tree.map(lambda *leaves: np.stack(leaves), *packed)
        self._maps, self._cotangent = jax.device_put(
            (maps, padded), NamedSharding(mesh, split)
        )
        self._inputs = replicate((spikes, weights), mesh)

        def conv(spikes: Array, weights: Array, maps: KernelMap) -> Array:
            own = jax.tree.map(lambda leaf: leaf[0], maps)
            options = {"num_out": num_out, "integer_inputs": True}
            return sparse_conv(spikes, weights, own, **options)[None]

        dealt = jax.shard_map(
            conv,
            mesh=mesh,
            in_specs=(whole, whole, split),
            out_specs=split,
            check_vma=False,
        )

        def pull_back(spikes, weights, maps, cotangent):
            outputs, pull = jax.vjp(lambda x, w: dealt(x, w, maps), spikes, weights)
            return outputs, *pull(cotangent)

        self._forward, self._both = jax.jit(dealt), jax.jit(pull_back)

    def forward(self) -> Array:
        """The outputs of every device, waited for."""
        return jax.block_until_ready(self._forward(*self._inputs, self._maps))

    def both(self) -> tuple[Array, Array, Array]:
        """Outputs of every device and both gradients, waited for."""
        arguments = *self._inputs, self._maps, self._cotangent
        return jax.block_until_ready(self._both(*arguments))

    def join(self, outputs: Array) -> Float[np.ndarray, "voxels c_out"]:
        """The outputs of all devices as rows of the cloud."""
        shares = zip(np.asarray(outputs), self.runs, strict=True)
        return np.concatenate([rows[: len(run)] for rows, run in shares])
