"""The E-3DSNN classifier: the encoder, a mean over each cloud, and a linear head."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3dsnn_jax.backbone import Architecture, Backbone
from e3dsnn_jax.layers import Activations, Compute, submanifold_init
from e3dsnn_jax.pooling import cloud_mean
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.spike import Neuron


class Classifier(nn.Module):
    """Point clouds, as voxels with features, to class logits.

    The published head is a 1x1x1 convolution on every voxel of the last stage, then
    a mean over each cloud. Mean and linear map commute, so the mean comes first here
    and the head multiplies once a cloud.

    Source: `DefaultClassifier` around `SNN_3dv` in the authors' code.
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
        num_clouds: int,
        train: bool,
    ) -> tuple[Float[Array, "clouds classes"], Activations]:
        """Returns the logits of every cloud, and every activation by name.

        Args:
          features: Features of the voxels of the finest level.
          levels: The batch's levels, from `build_pyramid`.
          num_clouds: Number of clouds in the batch, padding clouds included.
          train: Use and update batch statistics.

        Returns:
          The logits (for a cloud without voxels: the head's bias), and the activations:
          `"stem/unit0"` ... the membranes after each unit `[voxels, time, channels]`,
          `".../spikes"` what a unit's neuron sent into its convolution, and `"pooled"`.
        """
        backbone = Backbone(
            self.architecture,
            self.neuron,
            self.batch_axis,
            self.compute,
            self.frozen_blocks,
            name="backbone",
        )
        membrane, activations = backbone(features, levels, train=train)
        readout = jnp.mean(membrane, axis=1)
        pooled = cloud_mean(readout, levels[-1].coords, num_clouds=num_clouds)
        head = nn.Dense(
            self.num_classes,
            kernel_init=submanifold_init,
            precision="highest",
            name="head",
        )
        return head(pooled), activations | {"pooled": pooled}
