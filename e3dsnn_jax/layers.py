"""Linen layers: the masked BatchNorm, and the unit neuron -> convolution -> norm."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.sparse_conv import sparse_conv
from e3dsnn_jax.spike import Neuron

Activations = dict[str, Array]
"""Named intermediate results of a network, keyed by module path."""

Initializer = Callable[..., Array]
Precision = Literal["float32", "bfloat16", "bfloat16_split"]


class Compute(NamedTuple):
    """How a network is computed; convolutions sum in float32 always."""

    precision: Precision = "float32"
    """`bfloat16`: inputs, weights, outputs and their gradients. `bfloat16_split`: each
    weight as the sum of two bfloat16 numbers, good to 2**-16 of its size, and float32
    outputs; spikes are exact in bfloat16, and layers with real inputs use float32. The
    gradients of its outputs are rounded to bfloat16 on their way back."""
    deterministic: bool = True
    """Whether a GPU must add in the same order each time; see `sparse_conv`."""
    rematerialise: bool = False
    """Compute each block anew in the backward pass instead of keeping its insides. On a
    CPU that takes `steps.KEEP_BARRIERS`."""


submanifold_init: Initializer = nn.initializers.normal(0.02)
"""Normal with standard deviation 0.02: the published `trunc_normal` cuts at 100 of
them, that is never."""


def strided_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    r"""Uniform in :math:`\pm 1 / \sqrt{k^3 c_{in}}`, as torch initialises a conv.

    The key is consumed.
    """
    bound = (shape[0] * shape[1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def fold_norm(
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    mean: Float[Array, " channels"],
    var: Float[Array, " channels"],
    epsilon: float,
) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
    r"""BatchNorm in inference as one product and one sum: its factor and its shift.

    .. math:: f = \gamma / \sqrt{\sigma^2 + \epsilon}, \qquad y = f x + (\beta - f \mu)
    """
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor


class MaskedBatchNorm(nn.Module):
    r"""BatchNorm over real voxels and time; padding rows come out exactly 0.

    .. math:: y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    Statistics are those of the whole batch over every device of `batch_axis`, merged
    from each device's count, mean and sum of squared deviations, so that no digits
    are lost whatever the offset. The running variance keeps the unbiased estimate,
    as torch does (Flax's own layer keeps the biased one); a batch without voxels
    leaves the running statistics as they are.

    Source: `BatchNorm1d(eps=1e-3, momentum=0.01)` on the features of active voxels in
    the authors' code.
    """

    epsilon: float = 1e-3
    momentum: float = 0.99
    unbiased: bool = True
    """Keep the unbiased batch variance in the running average (torch)."""
    batch_axis: str | None = None
    """Mesh axis over which the statistics are global."""

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "voxels time channels"],
        mask: Bool[Array, " voxels"],
        *,
        train: bool,
    ) -> Float[Array, "voxels time channels"]:
        """Normalises by the batch when training, by the running statistics if not."""
        shape = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        inputs = inputs.astype(jnp.float32)
        real = mask[:, None, None]
        if train:
            count, batch_mean, squares = masked_moments(inputs, mask, self.batch_axis)
            batch_var = squares / jnp.maximum(count, 1)
            if not self.is_initializing():
                kept = squares / jnp.maximum(count - int(self.unbiased), 1)
                rate = jnp.where(count > 0, 1 - self.momentum, 0.0)
                mean.value += rate * (batch_mean - mean.value)
                var.value += rate * (kept - var.value)
        else:
            batch_mean, batch_var = mean.value, var.value
        factor = scale * jax.lax.rsqrt(batch_var + self.epsilon)
        outputs = (inputs - batch_mean[None, None]) * factor[None, None]
        return jnp.where(real, outputs + bias[None, None], 0)


def masked_moments(
    inputs: Float[Array, "voxels time channels"],
    mask: Bool[Array, " voxels"],
    axis: str | None,
) -> tuple[Float[Array, ""], Float[Array, " channels"], Float[Array, " channels"]]:
    """Count, mean and sum of squared deviations over real voxels and time.

    Two passes on each device, then one exchange over the mesh axis, if named: the
    parts are merged by their counts, means and deviations (Chan et al. 1983).
    """
    real = mask[:, None, None]
    count = jnp.sum(mask, dtype=jnp.float32) * inputs.shape[1]
    mean = jnp.sum(jnp.where(real, inputs, 0), (0, 1)) / jnp.maximum(count, 1)
    deviations = jnp.where(real, inputs - mean[None, None], 0)
    squares = jnp.sum(deviations**2, (0, 1))
    if axis is None:
        return count, mean, squares
    parts = jnp.stack([jnp.full_like(mean, count), mean, squares])
    counts, means, squares = jnp.moveaxis(jax.lax.all_gather(parts, axis), 1, 0)
    total = jnp.sum(counts, 0)
    merged = jnp.sum(counts * means, 0) / jnp.maximum(total, 1)
    between = jnp.sum(counts * (means - merged[None]) ** 2, 0)
    return total[0], merged, jnp.sum(squares, 0) + between


class SparseConv(nn.Module):
    """Owns the kernel `[offsets, c_in, c_out]` of a sparse convolution without bias."""

    channels: int
    num_offsets: int = 27
    kernel_init: Initializer = submanifold_init
    integer_inputs: bool = False
    """Inputs are spikes (whole numbers 0..127)."""
    input_gradient: bool = True
    """Whether anything before this layer learns."""
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "voxels_in time c_in"],
        kernel_map: KernelMap,
        *,
        num_out: int,
    ) -> Float[Array, "voxels_out time channels"]:
        """Convolves along the map; see `sparse_conv`."""
        shape = (self.num_offsets, inputs.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        convolve = functools.partial(
            sparse_conv,
            kernel_map=kernel_map,
            num_out=num_out,
            integer_inputs=self.integer_inputs,
            input_gradient=self.input_gradient,
            deterministic=self.compute.deterministic,
        )
        split = self.compute.precision == "bfloat16_split"
        if self.compute.precision == "float32" or (split and not self.integer_inputs):
            return convolve(inputs, kernel)
        inputs, high = inputs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        if not split:
            return convolve(inputs, high)
        # Both parts beside each other: spikes are gathered once for the two.
        low = (kernel - high.astype(jnp.float32)).astype(jnp.bfloat16)
        both = jnp.concatenate([high, low], axis=-1)
        outputs = convolve(inputs, both, out_dtype=jnp.float32)
        return outputs[..., : self.channels] + outputs[..., self.channels :]


class Unit(nn.Module):
    """Neuron, sparse convolution without bias, BatchNorm: the step between membranes.

    Without a neuron the convolution takes real values: the network's first layer,
    whose inputs need no gradient.
    """

    channels: int
    neuron: Neuron | None
    num_offsets: int = 27
    kernel_init: Initializer = submanifold_init
    batch_axis: str | None = None
    compute: Compute = Compute()
    input_gradient: bool = True
    """Whether anything before this unit learns."""

    @nn.compact
    def __call__(
        self,
        membrane: Float[Array, "voxels_in time c_in"],
        kernel_map: KernelMap,
        mask: Bool[Array, " voxels_out"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels_out time channels"], Activations]:
        """Returns the normalised output, and the spikes that caused it."""
        activations = {}
        inputs = membrane
        if self.neuron is not None:
            inputs = activations["spikes"] = self.neuron(membrane)
        conv = SparseConv(
            self.channels,
            self.num_offsets,
            self.kernel_init,
            integer_inputs=self.neuron is not None and not self.neuron.relu,
            input_gradient=self.neuron is not None and self.input_gradient,
            compute=self.compute,
            name="conv",
        )
        outputs = conv(inputs, kernel_map, num_out=mask.shape[0])
        norm = MaskedBatchNorm(batch_axis=self.batch_axis, name="norm")
        return norm(outputs, mask, train=train), activations
