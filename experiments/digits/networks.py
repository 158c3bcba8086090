"""A dense and a convolutional classifier of digits, which return what they computed.

Both are a row of layers, each named once: the layer of that name owns the parameters of
that name, and its output, as the next layer reads it, is the activation of that name.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Activations = dict[str, Float[Array, "images ..."]]
Edit = Callable[[str, Array], Array]
# Directions that layers are read through, by name of the layer that is read.
Ranks = tuple[tuple[str, int], ...]

CLASSES = 10


def unchanged(name: str, activation: Array) -> Array:
    """Returns the activation: the edit that changes nothing."""
    del name
    return activation


class Dense(nn.Module):
    """Hidden layers of equal width with rectifiers, and ten outputs.

    The default is the network of the SVCCA tutorial: 784-500-500-500-10.
    """

    width: int = 500
    """Neurons of every hidden layer."""
    depth: int = 3
    """Number of hidden layers."""
    ranks: Ranks = ()
    """Layers that are read through fewer directions (`svcca_jax.projection.merge`)."""

    def layer_names(self) -> list[str]:
        """Names of the layers from the bottom up, the logits last."""
        return [*(f"fc{i + 1}" for i in range(self.depth)), "logits"]

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "images height width 1"],
        edit: Edit = unchanged,
        *,
        train: bool = False,
        frozen: int = 0,
    ) -> tuple[Float[Array, "images classes"], Activations]:
        """Logits, and the activations of every layer from the bottom up.

        Args:
          images: Pixels.
          edit: What the next layer reads instead of each activation.
          train: Whether batch statistics count; there are none here.
          frozen: Number of layers from the bottom that do not learn.
        """
        del train, frozen
        x = images.reshape(len(images), -1)
        found: Activations = {}
        *hidden, last = self.layer_names()
        for name in hidden:
            x = found[name] = edit(name, nn.relu(nn.Dense(self.width, name=name)(x)))
            if rank := dict(self.ranks).get(name):
                x = nn.Dense(rank, use_bias=False, name=f"{name}_directions")(x)
        found[last] = edit(last, nn.Dense(CLASSES, name=last)(x))
        return found[last], found


def valid_conv(
    maps: Float[Array, "images height width c_in"],
    kernel: Float[Array, "rows columns c_in c_out"],
    *args: object,
    **kwargs: object,
) -> Float[Array, "images _ _ c_out"]:
    """Convolution without padding or stride, as one matrix product of patches.

    The further arguments are
    those of `jax.lax.conv_general_dilated`, at their defaults.
    """
    del args, kwargs
    rows, columns, _, c_out = kernel.shape
    height, width = maps.shape[1] - rows + 1, maps.shape[2] - columns + 1
    patches = [
        maps[:, row : row + height, column : column + width]
        for row in range(rows)
        for column in range(columns)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, c_out)


def _halve(
    maps: Float[Array, "images height width channels"],
) -> Float[Array, "images _ _ channels"]:
    """2 x 2 max-pooling; its derivative is slow in the form of a window reduction."""
    images, height, width, channels = maps.shape
    height, width = height // 2, width // 2
    even = maps[:, : 2 * height, : 2 * width]
    return even.reshape(images, height, 2, width, 2, channels).max(axis=(2, 4))


class Conv(nn.Module):
    """Three convolutions, a dense layer and ten outputs.

    No window leaves the map (there is no padding), and the dense layers are
    convolutions whose window is the whole map: every layer is one kernel over the
    channels of the one below, which can be merged with a projection exactly.
    """

    channels: tuple[int, ...] = (16, 32, 32)
    """Channels of the convolutions; the first two are followed by 2 x 2 max-pooling."""
    windows: tuple[int, ...] = (5, 3, 3)
    """Sides of their windows."""
    width: int = 64
    """Neurons of the dense layer."""
    norm: bool = False
    """Whether the convolutions are batch-normalised."""
    ranks: Ranks = ()
    """Layers that are read through fewer directions (`svcca_jax.projection.merge`)."""

    def layer_names(self) -> list[str]:
        """Names of the layers from the bottom up, the logits last."""
        return [*(f"conv{i + 1}" for i in range(len(self.channels))), "fc1", "logits"]

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "images height width 1"],
        edit: Edit = unchanged,
        *,
        train: bool = False,
        frozen: int = 0,
    ) -> tuple[Float[Array, "images classes"], Activations]:
        """Logits, and the activations of every layer from the bottom up.

        Args:
          images: Pixels.
          edit: What the next layer reads instead of each activation.
          train: Whether the statistics of the batch normalise, and are recorded.
          frozen: Number of layers from the bottom that keep their recorded statistics.
        """
        x = images
        found: Activations = {}
        # The derivative of XLA's convolution is slow in a loop on a CPU.
        how = valid_conv if train else jax.lax.conv_general_dilated
        conv = functools.partial(nn.Conv, padding="VALID", conv_general_dilated=how)
        names = self.layer_names()
        outputs = [*self.channels, self.width, CLASSES]
        for number, (name, features) in enumerate(zip(names, outputs, strict=True)):
            convolution = number < len(self.channels)
            window = (self.windows[number],) * 2 if convolution else x.shape[1:3]
            x = conv(features, window, name=name)(x)
            if self.norm and convolution:
                fixed = not train or number < frozen
                norm = nn.BatchNorm(fixed, momentum=0.9, name=f"{name}_norm")
                x = norm(x)
            if name != names[-1]:
                x = nn.relu(x)
            if convolution and number < 2:
                x = _halve(x)
            x = found[name] = edit(name, x)
            if rank := dict(self.ranks).get(name):
                reduce = conv(rank, (1, 1), use_bias=False, name=f"{name}_directions")
                x = reduce(x)
        return found["logits"].reshape(len(images), CLASSES), found


Network = Dense | Conv


def position_rows(
    activation: Float[Array, "images ..."], *, most: int | None = None
) -> Float[Array, "rows neurons"]:
    """Every position of every image as a datapoint, with channels as neurons.

    It compares a layer with the same layer at another time or of another network.

    Args:
      activation: Activations of one layer, channels last.
      most: Take no more datapoints than this, the same at random in every call.
    """
    rows = activation.reshape(-1, activation.shape[-1])
    if most is None or len(rows) <= most:
        return rows
    chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
    return rows[np.sort(chosen)]


def image_rows(
    activation: Float[Array, "images ..."], *, cells: int = 3
) -> Float[Array, "images neurons"]:
    """Every image as a datapoint, with maps averaged to at most cells x cells.

    It compares layers of different resolution, and layers with classes.
    """
    if activation.ndim == 4 and activation.shape[1] > cells:
        shape = (len(activation), cells, cells, activation.shape[-1])
        activation = jax.image.resize(activation, shape, "linear")
    return jnp.reshape(activation, (len(activation), -1))
