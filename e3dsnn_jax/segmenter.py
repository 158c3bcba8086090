"""The E-3DSNN segmentation network: encoder, spiking decoder, and a linear head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3dsnn_jax.backbone import Architecture, Backbone, name_activations
from e3dsnn_jax.decoder import Decoder
from e3dsnn_jax.layers import Activations, Compute, submanifold_init
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.spike import Neuron

SEMANTIC_KITTI = Architecture(
    in_channels=4,
    embed_channels=64,
    stage_channels=(64, 128, 128, 256),
    stage_depths=(2, 2, 2, 2),
    decoder_channels=(256, 256, 256, 256),
)
"""The published size, with coordinates and intensity as features."""


class Segmenter(nn.Module):
    """Point clouds, as voxels with features, to class logits of every voxel.

    Source: `E_3DSNN_seg` in the authors' code.
    """

    architecture: Architecture
    num_classes: int
    neuron: Neuron = Neuron()
    batch_axis: str | None = None
    """Mesh axis over which BatchNorm statistics are global; None on one device."""
    compute: Compute = Compute()
    """Number type, order of sums, and what is kept for the backward pass."""
    frozen_blocks: int = 0
    """Leading blocks of the encoder that training leaves as they are; see `Backbone`.
    """

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "voxels in_channels"],
        levels: tuple[Level, ...],
        *,
        num_clouds: int | None = None,
        train: bool,
    ) -> tuple[Float[Array, "voxels classes"], Activations]:
        """Returns the logits of every voxel, and every activation by name.

        Args:
          features: Features of the voxels of the finest level.
          levels: The batch's levels, from `build_pyramid`.
          num_clouds: Not needed; taken so that all networks are called alike.
          train: Use and update batch statistics.

        Returns:
          The logits in the order of the voxels (in padding rows: the head's bias), and
          the activations: those of the encoder as the classifier names them, then
          `"decoder/stage3/up"`, `"decoder/stage3/fuse0"`, `".../fuse1"`, their
          `".../spikes"`, and `"decoder/stage3"` to `"decoder/stage0"`. Stage i is on
          level i.

        Raises:
          ValueError: If the architecture has no decoder, or the features or the levels
            do not fit it.
        """
        del num_clouds
        size = self.architecture
        if size.decoder_channels is None:
            raise ValueError(
                "this architecture has no decoder, and a Segmenter needs one: give "
                f"decoder_channels, {len(size.stage_channels)} of them"
            )
        # Once, so that encoder and decoder are given the very same maps.
        levels = jax.tree.map(jnp.asarray, levels)
        options = (self.neuron, self.batch_axis, self.compute)
        backbone = Backbone(size.encoder, *options, self.frozen_blocks, name="backbone")
        membrane, activations = backbone(features, levels, train=train)
        stages = [f"stage{index}" for index in range(len(size.stage_channels) - 1)]
        skips = tuple(activations[name] for name in ["stem", *stages])
        decoder = Decoder(size.decoder_channels, *options, name="decoder")
        membrane, inner = decoder(membrane, skips, levels, train=train)
        named = name_activations("decoder", membrane, inner)
        del named["decoder"]  # what its last stage puts out
        head = nn.Dense(
            self.num_classes,
            kernel_init=submanifold_init,
            precision="highest",
            name="head",
        )
        return head(jnp.mean(membrane, axis=1)), activations | named
