"""One submanifold convolution with its inputs, for the benchmark of `sparse_conv`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from e3dsnn_jax.kernel_map import (
    KernelMap,
    block_size,
    blocks_needed,
    make_kernel,
    pack_pairs,
)
from e3dsnn_jax.kernel_pairs import submanifold_pairs
from e3dsnn_jax.sparse_conv import sparse_conv

KERNEL = make_kernel(3)
SPIKE_LEVELS = 4


class Layer:
    """One convolution with its inputs, and what is timed of it.

    Args:
      coords: Sorted unique voxels.
      channels: Of inputs and outputs.
    """

    def __init__(self, coords: Int[np.ndarray, "voxels 4"], channels: int):
        rng = np.random.default_rng(0)
        self.coords = coords
        self.pairs = pairs = submanifold_pairs(coords, KERNEL)
        self.num_pairs = len(pairs.senders)
        size = block_size(self.num_pairs, KERNEL.num_offsets)
        rows = len(coords)
        needed = blocks_needed(pairs, pairs_per_block=size)
        packed = pack_pairs(
            pairs,
            num_in=rows,
            num_out=rows,
            pairs_per_block=size,
            blocks_capacity=needed,
        )
        self.kernel_map: KernelMap = jax.tree.map(jnp.asarray, packed)
        # A fifth of the neurons fire, as in the trained classifiers.
        fires = rng.random((rows, channels)) < 0.2
        spikes = fires * rng.integers(1, SPIKE_LEVELS + 1, fires.shape)
        self.spikes = spikes.astype(np.float32)
        shape = (KERNEL.num_offsets, channels, channels)
        self.weights = rng.normal(0, 0.02, shape).astype(np.float32)
        self.cotangent = rng.normal(size=(rows, channels)).astype(np.float32)
        self._forward = jax.jit(self._conv)
        self._both = jax.jit(self._pull_back)
        self._arguments = tuple(
            map(jnp.asarray, (self.spikes, self.weights, self.cotangent))
        )
        self._floor = jax.jit(self._multiply)
        blocks = jnp.zeros((needed, size, channels), jnp.float32) + self.spikes[0, 0]
        self._blocks = jax.block_until_ready(blocks)

    def _conv(self, spikes, weights):
        return sparse_conv(
            spikes,
            weights,
            self.kernel_map,
            num_out=len(self.coords),
            integer_inputs=True,
        )

    def _pull_back(self, spikes, weights, cotangent):
        outputs, pull_back = jax.vjp(self._conv, spikes, weights)
        return outputs, *pull_back(cotangent)

    def _multiply(self, blocks, weights):
        def step(_, block):
            index, rows = block
            return None, rows @ weights[index]

        return jax.lax.scan(step, None, (self.kernel_map.offset, blocks))[1]

    def forward(self) -> Array:
        """The outputs, waited for."""
        return jax.block_until_ready(self._forward(*self._arguments[:2]))

    def both(self) -> tuple[Array, Array, Array]:
        """Outputs and both gradients, waited for."""
        return jax.block_until_ready(self._both(*self._arguments))

    def floor(self) -> Array:
        """The matrix products alone."""
        return jax.block_until_ready(self._floor(self._blocks, self._arguments[1]))
