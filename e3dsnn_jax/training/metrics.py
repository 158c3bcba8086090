"""Accuracy from confusion matrices, and firing rates of the spiking layers.

Both are sums of whole numbers until the last division, so that an evaluation over
many batches and devices gives exactly what one large batch would give.
"""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from e3dsnn_jax.pyramid import Level

SPIKES_SUFFIX = "/spikes"


def confusion_matrix(
    labels: Int[np.ndarray, " clouds"],
    predictions: Int[np.ndarray, " clouds"],
    *,
    num_classes: int,
) -> Int[np.ndarray, "classes classes"]:
    """Counts of (true class, predicted class); matrices of several batches add up.

    Args:
      labels: True classes; clouds with a negative label are padding and not counted.
      predictions: Predicted classes.
      num_classes: Number of classes.

    Returns:
      A matrix with a row for each true class.

    Raises:
      ValueError: If a class is not below `num_classes`.
    """
    real = labels >= 0
    labels, predictions = labels[real], predictions[real]
    for name, values in (("label", labels), ("prediction", predictions)):
        wrong = values[(values < 0) | (values >= num_classes)]
        if len(wrong):
            raise ValueError(
                f"{name} {wrong[0]} is not one of {num_classes} classes: was the model "
                "trained on another list of classes?"
            )
    pairs = labels.astype(np.int64) * num_classes + predictions
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def overall_accuracy(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Share of the clouds whose predicted class is the true one.

    Raises:
      ValueError: If the matrix is empty.
    """
    return float(np.trace(confusion) / _clouds(confusion))


class ClassAccuracy(NamedTuple):
    """Accuracy class by class."""

    mean: float
    """Mean over the classes that occur among the labels."""
    per_class: Float[np.ndarray, " classes"]
    """Recall of each class; NaN where the class does not occur."""
    absent: tuple[int, ...]
    """Classes that do not occur among the labels, left out of the mean."""


def mean_class_accuracy(
    confusion: Int[np.ndarray, "classes classes"],
) -> ClassAccuracy:
    """Recall of each class and its mean over the classes that occur.

    Raises:
      ValueError: If the matrix is empty.
    """
    _clouds(confusion)
    totals = confusion.sum(axis=1)
    present = totals > 0
    per_class = np.full(len(confusion), np.nan)
    per_class[present] = np.diagonal(confusion)[present] / totals[present]
    absent = tuple(int(c) for c in np.flatnonzero(~present))
    return ClassAccuracy(float(per_class[present].mean()), per_class, absent)


def _clouds(confusion: Int[np.ndarray, "classes classes"]) -> int:
    clouds = int(confusion.sum())
    if clouds == 0:
        raise ValueError("no accuracy without clouds: the confusion matrix is empty")
    return clouds


class FiringCounts(NamedTuple):
    """Spikes of one layer in one batch; after the eval step with a `devices` axis.

    Counted by channel: whole numbers then stay exact in float32 up to 4 million
    voxels a device at 4 levels.
    """

    nonzero: Int32[Array, "*devices channels"]
    """Sites of each channel that sent a spike other than 0."""
    spikes: Float[Array, "*devices channels"]
    """Sum of the spikes of each channel, an integer spike of n counting n."""
    sites: Int32[Array, "*devices"]
    """Real voxels times time steps."""


class FiringTotals(NamedTuple):
    """Spikes of one layer over many batches, on the host."""

    nonzero: Int[np.ndarray, " channels"]
    spikes: Float[np.ndarray, " channels"]
    sites: int


class FiringRate(NamedTuple):
    """How active one spiking layer is."""

    firing_rate: float
    """Share of (voxel, time step, channel) whose spike is not 0."""
    mean_spikes: float
    """Mean spike, integer values included: 0 to the number of levels."""
    silent_channels: int
    """Channels that never fired."""


def count_spikes(
    activations: dict[str, Array], levels: tuple[Level, ...]
) -> dict[str, FiringCounts]:
    """Counts the spikes of every spiking layer of one device's batch.

    Args:
      activations: Activations of the network, `[voxels, time, channels]` each; those
        whose name ends in "/spikes" are counted.
      levels: The batch's levels, which tell real voxels from padding.

    Returns:
      Counts under the name of each unit, without the ending.
    """
    counts = {}
    for name, spikes in activations.items():
        if name.endswith(SPIKES_SUFFIX):
            unit = name.removesuffix(SPIKES_SUFFIX)
            level = levels[spike_level(unit)]
            counts[unit] = _count(spikes, jnp.asarray(level.coords)[:, 0] >= 0)
    return counts


def spike_level(unit: str) -> int:
    """The level on which a unit spikes.

    The stem works on level 0 and stage i on level i + 1, but the spikes of its strided
    convolution are those of that convolution's input, level i. Stage i of a decoder
    works on level i, and takes what it carries up from level i + 1.

    Raises:
      ValueError: If the name belongs to no unit.
    """
    if unit.split("/")[0] == "stem":
        return 0
    match = re.fullmatch(r"decoder/stage(\d+)/(up|fuse[01])", unit)
    if match is not None:
        return int(match[1]) + (match[2] == "up")
    match = re.fullmatch(r"stage(\d+)/(down|block\d+/unit\d+)", unit)
    if match is None:
        raise ValueError(
            f"no level is known for the spikes of {unit!r}: expected 'stem/...', "
            "'stage<i>/down', 'stage<i>/block<j>/unit<u>', 'decoder/stage<i>/up' or "
            "'decoder/stage<i>/fuse<j>'"
        )
    return int(match[1]) + (match[2] != "down")


def _count(
    spikes: Float[Array, "voxels time channels"], mask: Bool[Array, " voxels"]
) -> FiringCounts:
    real = jnp.where(mask[:, None, None], spikes.astype(jnp.float32), 0.0)
    return FiringCounts(
        nonzero=jnp.sum(real != 0, axis=(0, 1), dtype=jnp.int32),
        spikes=jnp.sum(real, axis=(0, 1)),
        sites=jnp.sum(mask, dtype=jnp.int32) * spikes.shape[1],
    )


def add_firing(
    totals: dict[str, FiringTotals], counts: dict[str, FiringCounts]
) -> dict[str, FiringTotals]:
    """Adds one batch, all devices of it, to the totals of the batches before.

    Args:
      totals: Totals so far; an empty dictionary before the first batch.
      counts: `firing` of the eval step's output.

    Returns:
      New totals, in 64-bit numbers.
    """
    added = {}
    for unit, count in counts.items():
        nonzero = np.asarray(count.nonzero).astype(np.int64).sum(axis=0)
        spikes = np.asarray(count.spikes).astype(np.float64).sum(axis=0)
        before = totals.get(unit, FiringTotals(nonzero * 0, spikes * 0, 0))
        added[unit] = FiringTotals(
            before.nonzero + nonzero,
            before.spikes + spikes,
            before.sites + int(np.asarray(count.sites).astype(np.int64).sum()),
        )
    return added


def firing_rates(totals: dict[str, FiringTotals]) -> dict[str, FiringRate]:
    """Firing rate of every spiking layer; NaN for a layer that saw no voxel."""
    rates = {}
    for unit, total in totals.items():
        neurons = total.sites * len(total.nonzero)
        rates[unit] = FiringRate(
            float(total.nonzero.sum() / neurons) if neurons else float("nan"),
            float(total.spikes.sum() / neurons) if neurons else float("nan"),
            int(np.sum(total.nonzero == 0)),
        )
    return rates
