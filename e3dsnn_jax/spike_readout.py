r"""The classifier's head on spikes: mean pooling and a linear head commute.

The membrane of the last stage is a sum of BatchNorms of convolutions of spikes: of the
strided one, and of the two units of each block that end on the shortcut. Pooling and
head are linear, so each of these convolutions can carry the head in its own kernel

.. math:: W'_k = W_k \,\mathrm{diag}(\gamma / \sigma)\, W_{head}

and an event adds its row of W' to the classes of its cloud. No layer but the first then
takes real values; the strided convolutions take spikes already. It costs `classes`
additions for each event and pair of those units (`count_readout`), more than the one
product a cloud that it saves: it is for hardware without multipliers. What is left to
each class of a cloud is one division by its voxels and time steps.

`spike_driven.run_binary(..., head_on_spikes=True)` runs a classifier so.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3dsnn_jax.binary_steps import binary_conv
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.layers import MaskedBatchNorm
from e3dsnn_jax.pooling import cloud_mean, voxel_mask
from e3dsnn_jax.pyramid import Level


class Contribution(NamedTuple):
    """One unit that adds to the membrane that is read out."""

    spikes: Float[Array, "voxels_in time c_in"]
    kernel: Float[Array, "offsets c_in c_out"]
    kernel_map: KernelMap
    factor: Float[Array, " c_out"]
    """What BatchNorm multiplies by."""
    shift: Float[Array, " c_out"]
    """What BatchNorm adds."""


def read_out(
    contributions: Sequence[Contribution],
    head: Float[Array, "c_out classes"],
    bias: Float[Array, " classes"],
    level: Level,
    *,
    num_clouds: int,
    levels: int,
) -> Float[Array, "{num_clouds} classes"]:
    """Logits of every cloud, by additions of spikes alone.

    Args:
      contributions: All units whose outputs sum to the membrane.
      head: Weights of the linear head.
      bias: Its bias.
      level: The level of the membrane.
      num_clouds: Clouds of the batch.
      levels: Binary steps of a time step (D).

    Returns:
      The head of the mean over voxels and time; the bias for a cloud without voxels.
    """
    coords = jnp.asarray(level.coords)
    real = voxel_mask(coords)[:, None].astype(head.dtype)
    precision = jax.lax.Precision.HIGHEST
    logits = jnp.broadcast_to(bias, (num_clouds, len(bias)))
    for part in contributions:
        scaled = part.factor[:, None] * head
        kernel = jnp.matmul(part.kernel, scaled, precision=precision)
        currents = binary_conv(
            part.spikes, kernel, part.kernel_map, num_out=len(coords), levels=levels
        )
        constant = jnp.matmul(part.shift, head, precision=precision)
        # A constant of every voxel, so that clouds without any get none of it.
        readout = jnp.mean(currents, axis=1) + real * constant[None]
        logits = logits + cloud_mean(readout, coords, num_clouds=num_clouds)
    return logits


def readout_units(model: Classifier) -> list[str]:
    """Names of the units whose outputs sum to the last membrane."""
    last = len(model.architecture.stage_depths) - 1
    blocks = range(model.architecture.stage_depths[last])
    names = [f"block{block}/unit{unit}" for block in blocks for unit in (0, 2)]
    return [f"stage{last}/{name}" for name in ("down", *names)]


class ReadoutCount(NamedTuple):
    """Additions of a classifier when its head takes spikes, and those it leaves out."""

    added: dict[str, int]
    """By unit: additions onto the classes, made beside those onto its channels."""
    saved: dict[str, int]
    """By unit: additions onto channels that nothing but the head would read."""


def count_readout(model: Classifier, pair_spikes: Mapping[str, int]) -> ReadoutCount:
    """What changes in an account of additions when the head takes spikes.

    The products of the head are no longer made either. Constants, which are added once
    a cloud, and the division of the mean are counted in neither case.

    Args:
      model: The classifier.
      pair_spikes: For each unit of `readout_units`, as `stage3/down`: its spikes, each
        times the pairs of its voxel (the sum of `operations.LayerTotals.pair_spikes`).
    """
    names = readout_units(model)
    added = {name: pair_spikes[name] * model.num_classes for name in names}
    # Every other output of these units is summed into what a later neuron receives.
    last = names[-1]
    channels = model.architecture.stage_channels[-1]
    return ReadoutCount(added, {last: pair_spikes[last] * channels})


def classifier_on_spikes(
    model: Classifier,
    variables: dict[str, Any],
    activations: dict[str, Array],
    levels: tuple[Level, ...],
    *,
    num_clouds: int,
) -> Float[Array, "{num_clouds} classes"]:
    """Logits of a classifier whose head takes spikes.

    Args:
      model: The classifier.
      variables: Its variables.
      activations: What it, or `run_binary` of it, returned beside the logits.
      levels: The batch's levels.
      num_clouds: Clouds of the batch.

    Raises:
      ValueError: If the network has no spikes.
    """
    if model.neuron.relu:
        raise ValueError("a network with ReLU has no spikes that a head could take")
    variables = jax.tree.map(jnp.asarray, variables)
    params, statistics = variables["params"], variables["batch_stats"]
    levels = jax.tree.map(jnp.asarray, levels)
    contributions = []
    for name in readout_units(model):
        unit, norm = params["backbone"], statistics["backbone"]
        for word in name.split("/"):
            unit, norm = unit[word], norm[word]
        found = norm["norm"]
        variance = found["var"] + MaskedBatchNorm.epsilon
        factor = unit["norm"]["scale"] * jax.lax.rsqrt(variance)
        kernel_map = levels[-2].down if name.endswith("/down") else None
        contributions.append(
            Contribution(
                activations[f"{name}/spikes"],
                unit["conv"]["kernel"],
                kernel_map or levels[-1].submanifold,
                factor,
                unit["norm"]["bias"] - found["mean"] * factor,
            )
        )
    head = params["head"]
    return read_out(
        contributions,
        head["kernel"],
        head["bias"],
        levels[-1],
        num_clouds=num_clouds,
        levels=model.neuron.levels,
    )
