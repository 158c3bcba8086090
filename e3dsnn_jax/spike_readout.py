r"""The classifier's head on spikes: mean pooling and a linear head commute.

The membrane of the last stage is a sum of BatchNorms of convolutions of spikes: of the
strided one, and of the two units of each block that end on the shortcut. Pooling and
head are linear, so each of these convolutions can carry the head in its own kernel

.. math:: W'_k = W_k \,\mathrm{diag}(\gamma / \sigma)\, W_{head}

and an event adds its row of W' to the classes of its cloud. No layer but the first then
takes real values; the strided convolutions take spikes already. It costs `classes`
additions for each event and pair of those units (`account_on_spikes`), more than the
product a cloud that it saves: it is for hardware without multipliers. What is left to
each class of a cloud is one division by its voxels and time steps.

`spike_driven.run_binary(..., head_on_spikes=True)` runs a classifier so, and `e3dsnn
energy --head-on-spikes` accounts for it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3dsnn_jax.binary_steps import binary_conv
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.energy import Account
from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.layer_calls import LayerCall, NormCall, replace_layers
from e3dsnn_jax.layers import fold_norm
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


def readout_units(model: nn.Module) -> list[str]:
    """Names of the units whose outputs sum to the last membrane.

    Raises:
      ValueError: If the network is no classifier with stages that spikes.
    """
    if not isinstance(model, Classifier):
        raise ValueError(
            f"head_on_spikes needs a Classifier, whose head is linear after a mean; a "
            f"{type(model).__name__} runs without it"
        )
    if model.neuron.relu:
        raise ValueError("a network with ReLU has no spikes that a head could take")
    if not model.architecture.stage_depths:
        raise ValueError(
            "head_on_spikes needs a network with stages, and this one has none: the "
            "membrane of its stem holds real values, on which the head stays"
        )
    last = len(model.architecture.stage_depths) - 1
    blocks = range(model.architecture.stage_depths[last])
    names = [f"block{block}/unit{unit}" for block in blocks for unit in (0, 2)]
    return [f"stage{last}/{name}" for name in ("down", *names)]


def account_on_spikes(model: nn.Module, account: Account) -> Account:
    """The account of a classifier when its head takes spikes.

    Each spike of the units that are read out is added onto the classes as well, once
    for each pair; the last of these units is added onto nothing else, since none but
    the head would read its channels. The products of the head are not made. Constants,
    which are added once a cloud, and the division of the mean are counted in neither
    case.

    Args:
      model: The classifier.
      account: What it does with its head on real values.

    Raises:
      ValueError: If the network has no head that could take spikes.
    """
    units = readout_units(model)
    assert isinstance(model, Classifier)
    layers = []
    for layer in account.layers:
        name = layer.shape.name
        if name in units:
            read = name != units[-1]
            layer = layer._replace(classes=model.num_classes, read=read)
        elif name == "head":
            layer = layer._replace(read=False)
        layers.append(layer)
    operations = lambda layers: sum(layer.synaptic_operations for layer in layers)
    more = (operations(layers) - operations(account.layers)) / account.clouds
    products = sum(layer.macs for layer in account.layers) - sum(
        layer.macs for layer in layers
    )
    note = (
        f"The head takes spikes: {more:+.4g} additions a cloud, and "
        f"{products / account.clouds:.4g} products fewer; the layers without spikes "
        "are compared with their head as it was."
    )
    return account._replace(layers=tuple(layers), notes=(*account.notes, note))


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
      ValueError: If the network has no spikes, or no stages.
    """
    names = readout_units(model)
    variables = jax.tree.map(jnp.asarray, variables)
    params, statistics = variables["params"], variables["batch_stats"]
    levels = jax.tree.map(jnp.asarray, levels)
    epsilons = _norm_epsilons(model, variables, levels, num_clouds)
    contributions = []
    for name in names:
        unit, found = params["backbone"], statistics["backbone"]
        for word in name.split("/"):
            unit, found = unit[word], found[word]
        norm = unit["norm"] | found["norm"]
        factor, shift = fold_norm(
            norm["scale"],
            norm["bias"],
            norm["mean"],
            norm["var"],
            epsilons[f"{name}/norm"],
        )
        kernel_map = levels[-2].down if name.endswith("/down") else None
        contributions.append(
            Contribution(
                activations[f"{name}/spikes"],
                unit["conv"]["kernel"],
                kernel_map or levels[-1].submanifold,
                factor,
                shift,
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


def _norm_epsilons(
    model: Classifier,
    variables: dict[str, Any],
    levels: tuple[Level, ...],
    num_clouds: int,
) -> dict[str, float]:
    """The epsilon of each BatchNorm, as the network calls it; computes nothing."""
    found: dict[str, float] = {}

    def layer(call: LayerCall) -> Array:
        shape = (call.num_out, *call.inputs.shape[1:-1], call.kernel.shape[-1])
        return jnp.zeros(shape, jnp.float32)

    def norm(call: NormCall) -> Array:
        found[call.name] = call.epsilon
        return call.inputs

    def watch(variables, features, levels):
        options = {"num_clouds": num_clouds, "train": False}
        inputs = variables, features, levels
        return replace_layers(model, *inputs, layer=layer, norm=norm, **options)

    shape = len(levels[0].coords), model.architecture.in_channels
    features = jax.ShapeDtypeStruct(shape, jnp.float32)
    jax.eval_shape(watch, variables, features, levels)
    return found
