"""The spiking decoder: membranes of the coarsest voxels back to the finest ones.

Each stage goes up one level by the inverse of the map that the encoder went down, and
fuses what arrives with what the encoder left on that level, by two linear layers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from e3dsnn_jax.backbone import call_part, name_activations
from e3dsnn_jax.executors import dot
from e3dsnn_jax.kernel_map import invert
from e3dsnn_jax.layer_calls import SpikeDense
from e3dsnn_jax.layers import (
    Activations,
    Compute,
    MaskedBatchNorm,
    Unit,
    strided_init,
    submanifold_init,
)
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.spike import Neuron


class SpikeLinear(SpikeDense):
    """A linear layer on spikes, in the number type of `Compute`."""

    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, spikes: Float[Array, "voxels time c_in"]
    ) -> Float[Array, "voxels time channels"]:
        """Multiplies every voxel and time step by one matrix."""
        shape = (spikes.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        if self.compute.precision == "float32":
            precision = jax.lax.Precision.HIGHEST
            return jnp.matmul(spikes, kernel, precision=precision) + bias[None, None]
        rows = spikes.reshape(-1, spikes.shape[-1]).astype(jnp.bfloat16)
        high = kernel.astype(jnp.bfloat16)
        if self.compute.precision == "bfloat16":
            outputs = (dot(rows, high) + bias[None]).astype(jnp.bfloat16)
        else:
            low = (kernel - high.astype(jnp.float32)).astype(jnp.bfloat16)
            both = dot(rows, jnp.concatenate([high, low], axis=-1))
            outputs = both[:, : self.channels] + both[:, self.channels :] + bias[None]
        return outputs.reshape(*spikes.shape[:-1], self.channels)


class LinearUnit(nn.Module):
    """Neuron, linear layer with bias, BatchNorm: `Unit` with a kernel of one voxel."""

    channels: int
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        membrane: Float[Array, "voxels time c_in"],
        mask: Bool[Array, " voxels"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels time channels"], Activations]:
        """Returns the normalised output, and the spikes that caused it."""
        spikes = self.neuron(membrane)
        # Named as in `Unit`, so that a layer bears the name of its unit.
        if self.neuron.relu:  # real-valued inputs
            half = self.compute.precision == "bfloat16"
            linear: nn.Module = nn.Dense(
                self.channels,
                dtype=jnp.bfloat16 if half else None,
                precision=None if half else "highest",
                kernel_init=submanifold_init,
                name="conv",
            )
        else:
            linear = SpikeLinear(self.channels, compute=self.compute, name="conv")
        norm = MaskedBatchNorm(batch_axis=self.batch_axis, name="norm")
        return norm(linear(spikes), mask, train=train), {"spikes": spikes}


class DecoderStage(nn.Module):
    """Inverse convolution on spikes to twice the resolution, then the fused skip.

    With `a` what the inverse convolution gives, `a + fuse1(fuse0([a, skip]))`. Voxels
    that the encoder dropped on its way down receive nothing from below: `a` is there
    what BatchNorm makes of 0.

    Source: `UpBlock` in the authors' code.
    """

    channels: int
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        membrane: Float[Array, "voxels_in time c_in"],
        skip: Float[Array, "voxels_out time c_skip"],
        fine: Level,
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels_out time channels"], Activations]:
        """Takes membranes on the level below `fine` to membranes on `fine`.

        Args:
          membrane: Of the coarser level.
          skip: What the encoder left on the finer level.
          fine: The finer level, whose map to the coarser one is run backwards.
          train: Use and update batch statistics.

        Raises:
          ValueError: If the finer level has no map to the next.
        """
        if fine.down is None:
            raise ValueError("the finer level has no map to the next: too few levels")
        mask = voxel_mask(fine.coords)
        up = Unit(
            self.channels,
            self.neuron,
            num_offsets=8,
            kernel_init=strided_init,
            batch_axis=self.batch_axis,
            compute=self.compute,
            name="up",
        )
        raised, inner = up(membrane, invert(fine.down), mask, train=train)
        activations = name_activations("up", raised, inner)
        fused = jnp.concatenate([raised, skip], axis=-1)
        for index in range(2):
            unit = LinearUnit(
                self.channels,
                self.neuron,
                self.batch_axis,
                self.compute,
                name=f"fuse{index}",
            )
            fused, inner = unit(fused, mask, train=train)
            activations |= name_activations(f"fuse{index}", fused, inner)
        return raised + fused, activations


class Decoder(nn.Module):
    """A stage for each of the encoder, from the coarsest to the finest level."""

    channels: tuple[int, ...]
    """Of each stage, the finest first."""
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        membrane: Float[Array, "voxels_in time c_in"],
        skips: tuple[Float[Array, "_ time _"], ...],
        levels: tuple[Level, ...],
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels_out time channels"], Activations]:
        """Returns the membranes of the finest level, and every activation by name.

        Args:
          membrane: Of the coarsest level.
          skips: What the encoder left on the other levels, the finest first.
          levels: All levels, the finest first.
          train: Use and update batch statistics.
        """
        activations: Activations = {}
        for index in reversed(range(len(self.channels))):
            stage = DecoderStage(
                self.channels[index],
                self.neuron,
                self.batch_axis,
                self.compute,
                name=f"stage{index}",
            )
            membrane, inner = call_part(
                stage,
                membrane,
                skips[index],
                levels[index],
                compute=self.compute,
                train=train,
            )
            activations |= name_activations(f"stage{index}", membrane, inner)
        return membrane, activations
