"""When, and in which layer, each class can be read.

Clouds are the datapoints: a layer is its mean over the voxels of a cloud, a class is
the indicator of its clouds, 1 inside and 0 outside. Their similarity by CCA is the
multiple correlation of the indicator with the layer's kept directions. Layers with more
directions follow any labels better, so that the baseline is the same with labels that
were dealt to the clouds at random.

Source: SVCCA (NIPS 2017), section 4.3, class sensitivity.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

import svcca_jax
from e3dsnn_jax.analysis.activations import Layers
from svcca_jax.measure import Measure

SEED = 0


class ClassInformation(NamedTuple):
    """Similarity of layers with classes."""

    classes: tuple[int, ...]
    """Labels of the classes that have clouds inside and outside."""
    values: Float[np.ndarray, "steps layers classes"]
    baseline: Float[np.ndarray, " layers"]
    """At the last step, with labels dealt at random; mean over the classes."""


def compute_class_information(
    pooled: Sequence[Layers], labels: Int[np.ndarray, " clouds"], measure: Measure
) -> ClassInformation | None:
    """Compares every layer at every step with the indicator of every class.

    Args:
      pooled: For each step every layer as means over clouds.
      labels: Class of every cloud.
      measure: The similarity.

    Returns:
      The similarities, or None if all clouds are of one class.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        return None
    shuffled = np.random.default_rng(SEED).permutation(labels)
    indicators = [
        (those == label)[:, None].astype(np.float32)
        for those in (labels, shuffled)
        for label in classes
    ]
    found = svcca_jax.over_checkpoints(
        pooled, indicators, measure=measure, all_pairs=True
    )
    values, random = np.split(found, 2, axis=-1)
    return ClassInformation(tuple(classes.tolist()), values, random[-1].mean(axis=-1))
