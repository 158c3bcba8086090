"""A saved network and a dataset on one device: what looks inside of networks needs.

Accounts of energy, comparisons of spikes and analyses of layers all run a network over
clouds as an evaluation does, batch after batch of the same voxels, and want its
activations, which the evaluation step does not return.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.clouds import ShapeDataset
from e3dsnn_jax.data.loader import BatchLayout, ShapeBatch, iterate
from e3dsnn_jax.training.evaluate import make_evaluation_source
from e3dsnn_jax.training.saved import SavedNetwork


class Batches(NamedTuple):
    """The batches of one evaluation, without an axis of devices."""

    batches: Iterator[ShapeBatch]
    number: int


def open_batches(network: SavedNetwork, dataset: ShapeDataset) -> Batches:
    """Every cloud of a dataset once, as an evaluation of the network would see it.

    Args:
      network: From `load_run` or `load_weights`.
      dataset: Its clouds; each time the same voxels are chosen.

    Raises:
      ValueError: If the dataset is empty.
    """
    layout = BatchLayout(
        batch_size=network.batch_size,
        num_devices=1,
        num_levels=network.model.architecture.num_levels,
        voxel_size=network.data.voxel_size,
        normals=network.data.normals,
    )
    source = make_evaluation_source(dataset, layout)
    first = lambda stacked: jax.tree.map(lambda leaf: leaf[0], stacked)
    return Batches(map(first, iterate(source)), len(source))


def open_model(network: SavedNetwork) -> Classifier:
    """The network's model with its layers in the open: nothing is rematerialised."""
    compute = network.model.compute._replace(rematerialise=False)
    return network.model.clone(compute=compute)
